use proptest::collection::vec;
use proptest::prelude::*;

use super::{Register, RegisterFile, read, write};

/// A byte register, one of two bytes, a gap, one of four.
const MAP: [Register<usize>; 3] = [
    Register {
        offset: 0,
        width: 1,
        id: 0,
    },
    Register {
        offset: 2,
        width: 2,
        id: 1,
    },
    Register {
        offset: 8,
        width: 4,
        id: 2,
    },
];

#[derive(Default)]
struct File {
    values: [u32; 3],
    writes: Vec<(usize, u32)>,
}

impl RegisterFile for File {
    type Id = usize;

    fn get(&mut self, id: usize) -> u32 {
        self.values[id]
    }

    fn set(&mut self, id: usize, value: u32) {
        self.values[id] = value;
        self.writes.push((id, value));
    }
}

#[test]
fn each_register_is_written_once_and_whole() {
    let mut file = File::default();
    write(&mut file, &MAP, 0, &[1, 0xee, 2, 3, 0xee, 0xee, 0xee, 0xee]);
    assert_eq!(file.writes, [(0, 1), (1, 0x0302)]);
    file.writes.clear();
    write(&mut file, &MAP, 9, &[7]);
    assert_eq!(file.writes, [(2, 0x0700)], "the rest of the register is kept");
    write(&mut file, &MAP, u64::MAX, &[1, 2]);
    assert_eq!(file.writes.len(), 1, "an access that wraps hits nothing");
}

fn is_register(at: u64) -> bool {
    MAP.iter()
        .any(|r| (r.offset..r.offset + u64::from(r.width)).contains(&at))
}

proptest! {
    #[test]
    fn any_sequence_equals_the_bytewise_model(
        accesses in vec((0u64..16, vec(any::<u8>(), 1..=8), any::<bool>()), 1..60),
    ) {
        let mut file = File::default();
        let mut model = [0u8; 32];
        for (offset, data, is_write) in accesses {
            if is_write {
                write(&mut file, &MAP, offset, &data);
                for (at, byte) in (offset..).zip(&data).filter(|(at, _)| is_register(*at)) {
                    model[usize::try_from(at).unwrap()] = *byte;
                }
            } else {
                let mut got = vec![0xaa; data.len()];
                read(&mut file, &MAP, offset, &mut got);
                let at = usize::try_from(offset).unwrap();
                prop_assert_eq!(&got[..], &model[at..at + data.len()]);
            }
        }
    }
}
