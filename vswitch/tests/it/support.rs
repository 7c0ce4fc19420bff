//! What the tests share.

pub(crate) mod host;
pub(crate) mod namespace;
pub(crate) mod net;
pub(crate) mod pair;
