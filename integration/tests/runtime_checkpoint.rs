//! `checkpoint` and `restore`: what criu is asked for, and what becomes of its answers.
//!
//! The criu of these tests is a double (`src/bin/fake_criu`), because the real one does not work on
//! every kernel; the last test has the real one.

#[path = "runtime_checkpoint/dump.rs"]
mod dump;
#[path = "runtime_checkpoint/fake.rs"]
mod fake;
#[path = "runtime_checkpoint/restore.rs"]
mod restore;
#[path = "runtime_checkpoint/shim.rs"]
mod shim;

use holdfast_integration::on_runtimes;

use dump::*;
use restore::*;
use shim::*;

// crun 1.8.1 of Debian is built without criu.
on_runtimes! {
    a_dump_asks_for_what_was_asked_for: holdfast runc;
    nothing_is_asked_for_by_itself: holdfast runc;
    a_dumped_container_is_gone_unless_it_is_left_running: holdfast runc;
    a_pre_dump_tracks_memory: holdfast runc;
    what_criu_lacks_is_said: holdfast;
    a_restored_container_is_one_like_any_other: holdfast runc;
    a_restore_asks_for_what_was_asked_for: holdfast runc;
    pipes_are_replaced_by_those_of_the_caller: holdfast runc;
    nothing_is_mounted_on_the_host: holdfast;
    a_restored_process_is_registered_before_it_runs: holdfast;
    a_shim_that_refuses_gets_no_container: holdfast;
    a_failure_is_told_in_criu_s_words: holdfast runc;
    a_restore_that_fails_leaves_nothing: holdfast runc;
    a_silent_criu_holds_nobody: holdfast;
    options_that_cannot_be_are_refused: holdfast;
    without_criu_it_says_so: holdfast;
    the_real_criu: holdfast;
}
