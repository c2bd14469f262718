//! Each incident that Holdfast exists to end, by name.

#[path = "incidents/i01_exec_race.rs"]
mod i01_exec_race;
#[path = "incidents/i02_withheld_exit.rs"]
mod i02_withheld_exit;
#[path = "incidents/i03_held_mount.rs"]
mod i03_held_mount;
#[path = "incidents/i04_stuck_init.rs"]
mod i04_stuck_init;
