//! Descriptors that a container gets from its caller: socket activation (sd_listen_fds(3)) and
//! `--preserve-fds`; and none besides.

use std::fs;
use std::process::Command;

use holdfast_integration::bundle::Bundle;
use holdfast_integration::deadline::{self, Finished};
use holdfast_integration::on_runtimes;
use holdfast_integration::runtime::Kind;
use holdfast_integration::scratch::{LIMIT, Scratch, text};
use serde_json::json;

on_runtimes! {
    listening_descriptors_reach_the_container: holdfast runc crun;
    those_of_another_process_do_not: holdfast runc;
    more_descriptors_come_after_the_listening_ones: holdfast runc crun;
    nothing_else_is_inherited: holdfast runc crun;
}

/// Runs a script in a container, called by a shell that has three files open and sets LISTEN_PID.
fn run(scratch: &Scratch, name: &str, listen_pid: &str, flags: &str, script: &str) -> Finished {
    let bundle: Bundle = scratch.bundle(name).script(script).with(|spec| {
        spec["process"]["env"] = json!(["PATH=/bin:/sbin", "OWN=1"]);
    });
    bundle.write();
    for number in 3..6 {
        fs::write(
            scratch.path(&format!("file-{number}")),
            format!("file {number}\n"),
        )
        .unwrap();
    }
    let file = |number: u32| text(&scratch.path(&format!("file-{number}")));
    // The pid stays the same over exec, also through the wrapper that crun needs.
    let shell = format!(
        "exec 3<'{}' 4<'{}' 5<'{}'; LISTEN_FDS=1 LISTEN_PID={listen_pid} exec \"$@\"",
        file(3),
        file(4),
        file(5)
    );
    let wanted = scratch.command(&["run", "--bundle", &text(&bundle.path)]);
    let mut command = Command::new("sh");
    command
        .args(["-c", &shell, "sh"])
        .arg(wanted.get_program())
        .args(wanted.get_args());
    command.args(flags.split_whitespace()).arg(&bundle.id);
    for (key, value) in wanted.get_envs() {
        if let Some(value) = value {
            command.env(key, value);
        }
    }
    deadline::run(&mut command, LIMIT)
}

const TELL: &str = "echo $OWN $LISTEN_FDS $LISTEN_PID; cat <&3; test ! -e /proc/$$/fd/4";

fn listening_descriptors_reach_the_container(scratch: &Scratch) {
    let ran = run(scratch, "box", "$$", "", TELL);
    // crun 1.8.1 does not set LISTEN_PID, so that sd_listen_fds(3) finds nothing in there.
    let pid = if scratch.runtime.kind == Kind::Crun {
        ""
    } else {
        " 1"
    };
    assert_eq!(ran.ok(), format!("1 1{pid}\nfile 3\n"), "{ran}");
}

fn those_of_another_process_do_not(scratch: &Scratch) {
    let script = "test -z \"$LISTEN_FDS\" && test ! -e /proc/$$/fd/3";
    run(scratch, "box", "1", "", script).ok();
}

fn more_descriptors_come_after_the_listening_ones(scratch: &Scratch) {
    let script = "cat <&3; cat <&4; test ! -e /proc/$$/fd/5";
    let ran = run(scratch, "box", "$$", "--preserve-fds 1", script);
    assert_eq!(ran.ok(), "file 3\nfile 4\n");
}

fn nothing_else_is_inherited(scratch: &Scratch) {
    let script = "for fd in 3 4 5 6 7 8 9; do test ! -e /proc/$$/fd/$fd || exit 1; done";
    let bundle = scratch.bundle("box").script(script);
    scratch.run(&bundle).ok();
}
