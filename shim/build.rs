//! Builds `holdfast-keeper`, to be embedded.

fn main() -> std::io::Result<()> {
    let sources = ["shim/keeper", "init/init/src/sys", "init/embed"];
    holdfast_embed::build("holdfast-keeper", "..", &sources)
}
