//! Kernels of a few instructions. The instructions used are the same in 32-bit and in 64-bit mode.

use crate::board::layout;
use crate::board::power;

/// A bzImage that starts with `code` in 64-bit mode.
pub(super) fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0u8; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x236] = 1;
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x10_0000_u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    // The 64-bit entry is 0x200 bytes into the kernel.
    image.extend([0; 0x200]);
    image.extend(code);
    image
}

/// An ELF file whose PVH entry is `code`, which starts in 32-bit mode.
pub(super) fn elf(code: &[u8]) -> Vec<u8> {
    const LOAD: u64 = 0x20_0000;
    let header = |kind: u32, offset: u64, len: u64| {
        let words = [offset, LOAD, LOAD, len, len, 4];
        let mut bytes = [kind.to_le_bytes(), 7u32.to_le_bytes()].concat();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    };
    let note: Vec<u8> = [4u32, 4, 18]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .chain(*b"Xen\0")
        .chain([0, 0, 0x20, 0])
        .collect();
    let note_at = 64 + 2 * 56;
    let code_at = note_at + note.len();
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend(2u16.to_le_bytes());
    image.extend(62u16.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    for word in [LOAD, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    image.extend(header(4, note_at as u64, note.len() as u64));
    image.extend(header(1, code_at as u64, code.len() as u64));
    image.extend(note);
    image.extend(code);
    image
}

/// `mov dx, port; mov al, value; out dx, al`.
pub(super) fn out(port: u16, value: u8) -> Vec<u8> {
    [&[0x66, 0xba][..], &port.to_le_bytes(), &[0xb0, value, 0xee]].concat()
}

/// Writes to the serial port.
pub(super) fn print(text: &str) -> Vec<u8> {
    text.bytes()
        .flat_map(|byte| out(layout::SERIAL_PORT, byte))
        .collect()
}

/// Halts for ever.
pub(super) fn halt() -> Vec<u8> {
    vec![0xf4, 0xeb, 0xfd]
}

/// Powers off.
pub(super) fn power_off() -> Vec<u8> {
    [out(power::SLEEP_CONTROL_PORT, power::S5 << 2 | 1 << 5), halt()].concat()
}

/// Resets.
pub(super) fn reset() -> Vec<u8> {
    [out(power::RESET_PORT, power::RESET_VALUE), halt()].concat()
}

/// Waits until the power button is pressed: `mov dx, port; in al, dx; test al, bit; jz -5`.
pub(super) fn await_button() -> Vec<u8> {
    let port = power::EVENT_PORT.to_le_bytes();
    [
        &[0x66, 0xba][..],
        &port,
        &[0xec, 0xa8, power::EVENT_POWER_BUTTON, 0x74, 0xfb],
    ]
    .concat()
}

/// Goes on if the zero page at RSI has the kernel's magic number; else halts.
pub(super) fn check_zero_page() -> Vec<u8> {
    // cmp dword [rsi + 0x202], "HdrS"; je +3; hlt; jmp -3
    [&[0x81, 0xbe, 2, 2, 0, 0][..], b"HdrS", &[0x74, 3], &halt()].concat()
}

/// Goes on if the start info at EBX has its magic number; else halts.
pub(super) fn check_start_info() -> Vec<u8> {
    // cmp dword [ebx], magic; je +3; hlt; jmp -3
    [
        &[0x81, 0x3b][..],
        &0x336e_c578_u32.to_le_bytes(),
        &[0x74, 3],
        &halt(),
    ]
    .concat()
}

/// Counts in memory, and writes the count as a digit.
pub(super) fn count_in_memory() -> Vec<u8> {
    let port = layout::SERIAL_PORT.to_le_bytes();
    // inc byte [0x300000]; mov al, [0x300000]; add al, '0'; mov dx, port; out dx, al
    [
        &[
            0xfe, 0x04, 0x25, 0, 0, 0x30, 0, 0x8a, 0x04, 0x25, 0, 0, 0x30, 0, 0x04, b'0', 0x66, 0xba,
        ][..],
        &port,
        &[0xee],
    ]
    .concat()
}
