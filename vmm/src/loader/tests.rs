use std::io::Write;

use super::*;

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap()
}

#[test]
fn other_files_are_refused() {
    for bytes in [&b""[..], b"\x7fELF\x01", &[0; 0x1000]] {
        let file = file(bytes);
        assert!(matches!(Kernel::open(file.path()), Err(LoadError::Unknown(_))));
    }
    assert!(matches!(
        Kernel::open(Path::new("/nonexistent")),
        Err(LoadError::Read(..))
    ));
}

/// A boot sector, one sector of set-up code, then the kernel.
fn bzimage(version: u16, xloadflags: u16) -> Vec<u8> {
    let mut image = vec![0u8; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&version.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
    image.extend_from_slice(&[0xf4; 512]);
    image
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry() {
    let file = file(&bzimage(0x020f, 1));
    let kernel = Kernel::open(file.path()).unwrap();
    for _ in 0..2 {
        let LoadedKernel::Linux64(loaded) = kernel.load(&ram()).unwrap() else {
            panic!("a bzImage")
        };
        assert_eq!(loaded.entry, 0x10_0200);
        assert_eq!(loaded.end, 0x120_0000);
    }
}

#[test]
fn a_bzimage_without_64_bit_entry_is_refused() {
    for (version, flags) in [(0x020f, 0), (0x020b, 1)] {
        let file = file(&bzimage(version, flags));
        let error = Kernel::open(file.path()).unwrap().load(&ram()).unwrap_err();
        assert!(matches!(error, LoadError::No64(..)), "{error}");
    }
}

#[test]
fn an_elf_file_without_pvh_note_is_refused() {
    let mut elf = vec![0u8; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[24..32].copy_from_slice(&0x100_0000u64.to_le_bytes());
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    elf[54..56].copy_from_slice(&56u16.to_le_bytes());
    let file = file(&elf);
    let error = Kernel::open(file.path()).unwrap().load(&ram()).unwrap_err();
    assert!(matches!(error, LoadError::NoPvh(_)), "{error}");
}
