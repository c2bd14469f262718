//! Builds `holdfast-init`, to be embedded: without LTO it would want an unwinder.

fn main() -> std::io::Result<()> {
    let sources = ["init/init", "init/plan", "init/embed"];
    holdfast_embed::build("holdfast-init", "../..", &sources)
}
