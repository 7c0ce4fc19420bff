//! The guests' kernel, unpacked beforehand: on a software CPU that takes a third of each boot.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use netyard_tests::lab::Yard;
use topologies::image;
use topologies::initramfs::cache::Cache;

/// What the kernel inside a bzImage begins with where it is compressed by xz.
const XZ: &[u8] = b"\xfd7zXZ\0";

/// The kernel as an ELF file, and the initial RAM file system, of the image with drivers for real devices.
pub(crate) fn unpacked(yard: &Yard) -> (PathBuf, PathBuf) {
    let image = image::ensure(image::WITH_DRIVERS, &Cache::of_user(), &|_| {}).expect("an image");
    let name = image.folder.file_name().expect("a folder").to_string_lossy();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.vmlinux"));
    if !kept.exists() {
        let packed = std::fs::read(image.kernel()).expect("a kernel");
        let start = packed.windows(XZ.len()).position(|bytes| bytes == XZ);
        let stream = yard.dir().join("vmlinux.xz");
        std::fs::write(&stream, &packed[start.expect("a kernel packed with xz")..]).expect("a file");
        // Complete from the moment that it has its name: other tests may want it as well.
        let plain = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
        let mut unpack = Command::new("xz");
        unpack.args(["-dc", "--single-stream"]).arg(&stream);
        unpack.stdout(Stdio::from(plain.reopen().expect("a file")));
        assert!(unpack.status().expect("xz").success());
        plain.persist(&kept).expect("a name");
    }
    (kept, image.initrd())
}
