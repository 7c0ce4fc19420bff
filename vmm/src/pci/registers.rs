//! Accesses of any width and alignment, cut into the registers that they cover.
//!
//! A register that is written in part is read, changed and written back; bytes between registers read as zero and
//! cannot be written. Registers are visited by rising offset, each once.

#[cfg(test)]
mod tests;

/// Where a register is.
#[derive(Clone, Copy, Debug)]
pub struct Register<Id> {
    /// Offset of the first byte.
    pub offset: u64,
    /// Bytes: 1, 2 or 4.
    pub width: u8,
    /// What it is.
    pub id: Id,
}

/// Registers with a meaning.
pub trait RegisterFile {
    /// Names a register.
    type Id: Copy;
    /// The register's value.
    fn get(&mut self, id: Self::Id) -> u32;
    /// Writes the register.
    fn set(&mut self, id: Self::Id, value: u32);
}

/// The part of a register that an access covers: which of its bytes, and where they are in the access.
fn overlap<Id>(register: &Register<Id>, offset: u64, len: usize) -> Option<(usize, usize, usize)> {
    let end = offset.checked_add(len as u64)?;
    let first = register.offset.max(offset);
    let last = (register.offset + u64::from(register.width)).min(end);
    let count = last.checked_sub(first).filter(|count| *count > 0)?;
    let small = |value: u64| usize::try_from(value).ok();
    Some((
        small(first - register.offset)?,
        small(first - offset)?,
        small(count)?,
    ))
}

/// Reads `data.len()` bytes at `offset`.
pub fn read<F: RegisterFile>(file: &mut F, map: &[Register<F::Id>], offset: u64, data: &mut [u8]) {
    data.fill(0);
    for register in map {
        if let Some((inside, at, count)) = overlap(register, offset, data.len()) {
            let value = file.get(register.id).to_le_bytes();
            data[at..at + count].copy_from_slice(&value[inside..inside + count]);
        }
    }
}

/// Writes `data` at `offset`.
pub fn write<F: RegisterFile>(file: &mut F, map: &[Register<F::Id>], offset: u64, data: &[u8]) {
    for register in map {
        if let Some((inside, at, count)) = overlap(register, offset, data.len()) {
            let whole = count == usize::from(register.width);
            let mut value = if whole {
                [0; 4]
            } else {
                file.get(register.id).to_le_bytes()
            };
            value[inside..inside + count].copy_from_slice(&data[at..at + count]);
            file.set(register.id, u32::from_le_bytes(value));
        }
    }
}
