//! `holdfast`: the OCI runtime. See `holdfast_runtime` for what it does.

fn main() -> std::process::ExitCode {
    holdfast_runtime::cli::main()
}
