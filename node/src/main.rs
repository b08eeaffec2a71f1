//! The `warren` binary: everything is in the library, see `cli`; and the allocator, which gives back what a burst of load has used.

use std::process::ExitCode;

/// Freed memory goes back to the system within seconds, from threads of its own. The system's allocator keeps what threads that end up idle
/// have freed: twice as much as a node holds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    warren::cli::main()
}
