//! The switch from outside: frames through rings and interfaces, and the program's command line.

mod announce;
mod balance;
mod bystanders;
mod cli;
mod control;
mod forwarding;
mod idle;
mod inflight;
mod killed;
mod link;
mod offloads;
mod polling;
mod restart;
mod rings;
mod spoof;
mod support;
mod tap;
mod unprivileged;
