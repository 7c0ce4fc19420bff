//! Where guests are measured: here if hardware backs KVM, else in the emulated host.

use tokio::runtime::Builder;
use topologies::agent::run_here;
use topologies::emulated::{DEFAULT_MEMORY_MIB, Host, command_like_here, inside};
use topologies::engine::hardware_kvm;
use topologies::image;
use topologies::initramfs::cache::Cache;

/// Runs this very command in the emulated host and gives back its exit code; `None` where that is not needed.
///
/// # Panics
/// When the emulated host does not come up.
pub fn run_elsewhere() -> Option<u8> {
    let why = hardware_kvm().err()?;
    let progress = |text: &str| eprintln!("host: {text}");
    eprintln!("host: {why}; measuring in the emulated host");
    // Nothing can be built inside.
    image::ensure(image::DEFAULT, &Cache::of_user(), &progress).unwrap_or_else(|error| panic!("{error}"));
    let program = std::env::current_exe().expect("this program has a path");
    let program = inside(&program)
        .unwrap_or_else(|| panic!("{} is not to be seen in the emulated host", program.display()));
    let mut argv = vec![program.display().to_string()];
    argv.extend(std::env::args().skip(1));
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let code = runtime.block_on(async {
        let host = Host::of_user();
        host.up(DEFAULT_MEMORY_MIB, &Cache::of_user(), &progress)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let mut agent = host.connect().await.unwrap_or_else(|error| panic!("{error}"));
        run_here(&mut agent, &command_like_here(argv), false)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    });
    // Reading standard input is not waited for.
    runtime.shutdown_background();
    Some(u8::try_from(code).unwrap_or(1))
}
