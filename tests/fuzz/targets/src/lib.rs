//! Fuzz targets: everything that reads what a guest, a front-end or a person wrote.
//!
//! A target is a function of bytes that panics when something is wrong. Nothing in it starts a thread, and what is expensive to make
//! (mappings above all) is made once, so that a target runs some ten thousand times a second and more. `tests/bounded.rs` runs each a
//! fixed number of times over its corpus and mutations of it; `cargo fuzz`, in the folder above, runs the same functions on the same
//! corpora for as long as one likes, guided by what they reach.
#![forbid(unsafe_code)]

pub mod config;
pub mod frames;
pub mod messages;
pub mod mutate;
pub mod rings;

/// What a target is run with.
pub type Target = fn(&[u8]);

macro_rules! targets {
    ($($name:literal: $module:ident::$function:ident,)*) => {
        /// Every target, by the name of its corpus, and where it is.
        pub const TARGETS: [(&str, &str, Target); [$($name),*].len()] = [$((
            $name,
            concat!(stringify!($module), "::", stringify!($function)),
            $module::$function,
        )),*];
    };
}

targets! {
    "split-device": rings::split_device,
    "split-driver": rings::split_driver,
    "packed-device": rings::packed_device,
    "packed-driver": rings::packed_driver,
    "messages": messages::messages,
    "frame": frames::frame,
    "checksum": frames::checksum,
    "segmentation": frames::segmentation,
    "vswitch-config": config::vswitch,
    "lab-file": config::lab,
    "sriov-file": config::sriov,
    "vmm-options": config::vmm,
}

/// Runs the target with this name.
///
/// # Panics
/// When there is no such target, and when the target finds something wrong.
pub fn run(name: &str, data: &[u8]) {
    let (.., target) = TARGETS
        .into_iter()
        .find(|(other, ..)| *other == name)
        .expect("a target's name");
    target(data);
}
