//! Builds `holdfast-nvml`, to be embedded: it must be dynamically linked, whatever the flags of the outer build say.

fn main() -> std::io::Result<()> {
    holdfast_embed::build("holdfast-nvml", "../..", &["init/nvml", "init/embed"])
}
