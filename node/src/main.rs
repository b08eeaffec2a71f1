//! The `warren` binary: everything is in the library, see `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    warren::cli::main()
}
