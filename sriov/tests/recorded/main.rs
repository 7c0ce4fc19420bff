//! The program on recorded trees: what it shows, what it refuses and why, and what it would write.

mod change;
mod show;
mod tree;
