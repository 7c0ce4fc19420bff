//! What the tests share.

pub(crate) mod host;
pub(crate) mod namespace;
pub(crate) mod pair;

pub(crate) use vswitch_testkit as net;
