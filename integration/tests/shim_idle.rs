//! What a shim holds while nobody asks it anything: next to nothing, and whatever it has let go of comes back by itself.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::time::Duration;

use holdfast_integration::deadline::{eventually, within};
use holdfast_integration::lone::Lone;
use holdfast_integration::shim::keeper_of;

const LIMIT: Duration = Duration::from_secs(60);
/// The shim is idle after two seconds.
const IDLE: Duration = Duration::from_secs(10);
/// The bar (1.2 MiB), for a shim that is alone on its node: nobody shares its pages.
const MOST_PRIVATE_KIB: u64 = 1228;

/// A mapping of the shim's own program, as smaps(5) has it.
#[derive(Debug)]
struct Mapping {
    start: u64,
    is_text: bool,
    is_written: bool,
    rss: u64,
    anonymous: u64,
}

fn program(pid: i32) -> Vec<Mapping> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut ours = false;
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [range, access, _, _, _, ref path @ ..] if range.contains('-') => {
                ours = path
                    .first()
                    .is_some_and(|path| path.ends_with("/containerd-shim-holdfast-v2"));
                if ours {
                    let start = range.split('-').next().unwrap();
                    mappings.push(Mapping {
                        start: u64::from_str_radix(start, 16).unwrap(),
                        is_text: access.contains('x'),
                        is_written: access.contains('w'),
                        rss: 0,
                        anonymous: 0,
                    });
                }
            }
            ["Rss:", kib, "kB"] if ours => mappings.last_mut().unwrap().rss = kib.parse().unwrap(),
            ["Anonymous:", kib, "kB"] if ours => {
                mappings.last_mut().unwrap().anonymous = kib.parse().unwrap();
            }
            _ => {}
        }
    }
    mappings
}

fn text(pid: i32) -> Mapping {
    let mut mappings = program(pid).into_iter();
    mappings.find(|one| one.is_text).expect("text")
}

fn private(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    of("Private_Clean:") + of("Private_Dirty:")
}

#[test]
fn an_idle_shim_holds_little_and_has_one_thread() {
    let Some(lone) = Lone::start_with_own_program("an_idle_shim") else {
        return;
    };
    lone.run(None);
    let pid = lone.shim.pid("");
    let (busy, idle) = eventually("the program's pages go", LIMIT, || {
        lone.shim.state("box", "").unwrap();
        let busy = text(pid).rss;
        // Where this thread has slept for so long that the shim was idle, there is nothing to see.
        within(IDLE, || {
            let idle = text(pid).rss;
            (idle * 2 < busy).then_some((busy, idle))
        })
    });
    println!("{busy} KiB of text after a request, {idle} KiB while idle");
    let held = eventually("little is private", LIMIT, || {
        let held = private(pid);
        (held <= MOST_PRIVATE_KIB).then_some(held)
    });
    println!("{held} KiB private");
    // Threads for blocking work end by themselves.
    eventually("one thread is left", LIMIT, || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
        (threads == 1).then_some(())
    });
    lone.end("box");
    lone.finish();
}

/// `make bench` does it 2,000 times, with HOLDFAST_LONG=1 20,000 times, and prints the memory.
#[test]
fn execs_leave_nothing_behind() {
    const EXECS: usize = 400;
    let Some(lone) = Lone::start_with_own_program("execs_leave_nothing") else {
        return;
    };
    lone.run(None);
    let pid = lone.shim.pid("");
    let held = || {
        let of = |pid: i32| {
            let entries = |folder| fs::read_dir(format!("/proc/{pid}/{folder}")).unwrap();
            (entries("fd").count(), entries("task").count())
        };
        (of(pid), keeper_of(pid).map(of))
    };
    let some = |from: usize, count: usize| {
        for number in from..from + count {
            let name = format!("x{number}");
            lone.shim.exec("box", &name, &["true"]).unwrap();
            lone.shim.start("box", &name).unwrap();
            assert_eq!(lone.shim.wait("box", &name).unwrap(), 0);
            lone.shim.delete("box", &name).unwrap();
        }
    };
    // What is made once, for the first ones, is there then.
    some(0, 20);
    let before = eventually("one thread is left", LIMIT, || {
        let held = held();
        (held.0.1 == 1).then_some(held)
    });
    some(20, EXECS);
    // Where something was left behind for each, this never comes.
    eventually("it holds what it held before", LIMIT, || {
        (held() == before).then_some(())
    });
    lone.end("box");
    lone.finish();
}

#[test]
fn a_debugger_s_breakpoint_stays() {
    let Some(lone) = Lone::start_with_own_program("a_debugger_s_breakpoint") else {
        return;
    };
    lone.run(None);
    let pid = lone.shim.pid("");
    // A byte of the text is replaced by itself: from then on the page is not the file's any more. The second page, as no
    // segment need begin at the beginning of a page.
    let at = text(pid).start + 4096;
    let mut memory = fs::File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .unwrap();
    let mut byte = [0];
    memory.seek(SeekFrom::Start(at)).unwrap();
    memory.read_exact(&mut byte).unwrap();
    memory.seek(SeekFrom::Start(at)).unwrap();
    memory.write_all(&byte).unwrap();
    assert_eq!(text(pid).anonymous, 4);
    // The constants go: that is how one sees that the shim was idle.
    let constants = || -> u64 {
        let mappings = program(pid).into_iter();
        let constants = mappings.filter(|one| !one.is_text && !one.is_written);
        constants.map(|one| one.rss).sum()
    };
    eventually("the constants go", LIMIT, || {
        lone.shim.state("box", "").unwrap();
        let busy = constants();
        within(IDLE, || (constants() < busy).then_some(()))
    });
    assert_eq!(text(pid).anonymous, 4, "the breakpoint is gone");
    lone.shim.state("box", "").unwrap();
    lone.end("box");
    lone.finish();
}
