//! A running shim is moved to another program, and its containers do not notice.

use std::process::Command;
use std::time::Duration;

use holdfast_integration::containerd::{self, Containerd};
use holdfast_integration::deadline::{self, Finished, eventually};
use holdfast_integration::flow::Flow;
use holdfast_integration::lone::Lone;
use holdfast_integration::scratch::text;
use holdfast_integration::shim::{Shim, keeper_of};
use holdfast_integration::{on_containerds, place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

on_containerds! {
    an_upgrade_leaves_containers_alone;
    what_cannot_go_on_is_refused_before_anything_changes;
    all_shims_of_a_containerd_namespace_are_upgraded;
    a_name_that_several_shims_have_moves_none_of_them;
    upgrades_lose_no_byte;
    the_list_tells_what_one_asks_first;
    a_program_that_dies_or_hangs_at_its_start_gives_the_shim_back;
}

const LIMIT: Duration = Duration::from_secs(60);

fn not_ours(test: &str) -> bool {
    containerd::not_ours(test, "containerd's own shim has no such thing")
}

fn holdfast(args: &[&str]) -> Finished {
    deadline::run(Command::new(place::built("holdfast")).args(args), LIMIT)
}

/// What `holdfast shims` says of one shim.
fn told(shim: i32) -> serde_json::Value {
    let list: serde_json::Value =
        serde_json::from_str(holdfast(&["shims", "--json"]).ok()).expect("JSON");
    let all = list.as_array().expect("a list");
    let found = all.iter().find(|one| one["pid"] == shim).cloned();
    found.unwrap_or_else(|| panic!("shim {shim} is not in {list}"))
}

/// Another file than the one that runs, as the installation of a package puts it there.
fn newer(containerd: &Containerd) -> String {
    let folder = containerd.path("newer");
    std::fs::create_dir(&folder).unwrap();
    let newer = folder.join("containerd-shim-holdfast-v2");
    std::fs::copy(place::built("containerd-shim-holdfast-v2"), &newer).unwrap();
    text(&newer)
}

fn all_shims_of_a_containerd_namespace_are_upgraded(containerd: &Containerd) {
    if not_ours("all_shims_of_a_containerd_namespace_are_upgraded") {
        return;
    }
    let boxes = ["one", "two", "three"];
    let pids = boxes.map(|id| containerd.start_task(id, &[], &["sleep", "600"]));
    let shims = boxes.map(|id| Shim::of(containerd, id).pid(id));
    let newer = newer(containerd);
    // Other tests have shims on this machine, too: in containerd namespaces of their own.
    let here = ["--namespace", &containerd.namespace, "--program", &newer];
    let said = holdfast(&[&["upgrade", "--all"], &here[..]].concat());
    let lines: Vec<&str> = said.ok().lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    for (shim, id) in shims.into_iter().zip(boxes) {
        let ours = format!("shim {shim}: ");
        let line = lines.iter().find(|line| line.starts_with(&ours));
        assert!(
            line.is_some_and(|line| line.ends_with("1 containers go on")),
            "{said}"
        );
        assert_eq!(told(shim)["info"]["images"], 1);
        let program = std::fs::read_link(format!("/proc/{shim}/exe")).unwrap();
        assert_eq!(text(&program), newer);
        assert_eq!(Shim::of(containerd, id).pid(id), shim);
    }
    for (id, pid) in boxes.into_iter().zip(pids) {
        assert_eq!(containerd.task(id).expect("a task").pid, pid);
        let code = containerd
            .exec(id, "x", &[], &["sh", "-c", "exit 4"])
            .code();
        assert_eq!(code, 4);
    }
    // The exit code says when one stays as it is, and which.
    let again = holdfast(&[
        "upgrade",
        "--program",
        "/bin/true",
        "-n",
        &containerd.namespace,
        "one",
    ]);
    assert!(again.failed().contains("stays as it is"), "{again}");
    let nowhere = holdfast(&["upgrade", "--all", "--namespace", "no-such-namespace"]);
    assert!(nowhere.ok().contains("no shim"), "{nowhere}");
    for id in boxes {
        containerd.end_task(id);
    }
}

fn a_name_that_several_shims_have_moves_none_of_them(containerd: &Containerd) {
    let test = "a_name_that_several_shims_have_moves_none_of_them";
    if not_ours(test) {
        return;
    }
    let Some(lone) = Lone::start(test, &[], None) else {
        return;
    };
    lone.run(None);
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shims = [Shim::of(containerd, "box").pid("box"), lone.shim.pid("box")];
    let newer = newer(containerd);
    let refused = holdfast(&["upgrade", "--program", &newer, "box"]);
    for (shim, namespace) in shims.iter().zip([&containerd.namespace, &lone.namespace]) {
        let listed = format!("{shim} ({namespace})");
        assert!(refused.failed().contains(&listed), "{listed}: {refused}");
        assert_eq!(told(*shim)["info"]["images"], 0);
    }
    let here = ["--namespace", &containerd.namespace, "--program", &newer];
    let said = holdfast(&[&["upgrade", "box"], &here[..]].concat());
    assert!(said.ok().contains("1 containers go on"), "{said}");
    assert_eq!(told(shims[0])["info"]["images"], 1);
    assert_eq!(told(shims[1])["info"]["images"], 0);
    let absent = holdfast(&["upgrade", "-n", &lone.namespace, "no-such-container"]);
    let where_to = format!("no shim of containerd namespace {}", lone.namespace);
    assert!(absent.failed().contains(&where_to), "{absent}");
    containerd.end_task("box");
    lone.end("box");
    lone.finish();
}

fn an_upgrade_leaves_containers_alone(containerd: &Containerd) {
    if not_ours("an_upgrade_leaves_containers_alone") {
        return;
    }
    let mut client = containerd.spawn_until_told("box", LIMIT);
    let pid = containerd.task("box").expect("a task").pid;
    let shim = Shim::of(containerd, "box").pid("box");
    let before = told(shim);
    assert_eq!(before["info"]["containers"], serde_json::json!(["box"]));
    assert_eq!(before["info"]["images"], 0);
    let table = holdfast(&["shims"]);
    assert!(
        table
            .ok()
            .lines()
            .any(|line| line.starts_with(&shim.to_string())),
        "{table}"
    );
    let newer = newer(containerd);
    let newer = newer.as_str();
    // By its pid: other tests have a container of this name, too.
    let said = holdfast(&["upgrade", "--program", newer, &shim.to_string()]);
    assert!(said.ok().contains("1 containers go on"), "{said}");
    let program = std::fs::read_link(format!("/proc/{shim}/exe")).unwrap();
    assert_eq!(program.to_str(), Some(newer));
    let after = told(shim);
    assert_eq!(after["info"]["images"], 1);
    assert_eq!(after["info"]["faults"], 0, "an upgrade is no fault");
    assert_eq!(after["info"]["began"], before["info"]["began"]);
    assert_eq!(containerd.task("box").expect("a task").pid, pid);
    containerd.tell_to_end("box");
    assert_eq!(client.code(), 42);
}

fn what_cannot_go_on_is_refused_before_anything_changes(containerd: &Containerd) {
    if not_ours("what_cannot_go_on_is_refused_before_anything_changes") {
        return;
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    let older = containerd.path("older");
    place::write_program(&older, "#!/bin/sh\nexit 1\n");
    let no_program = containerd.path("text");
    std::fs::write(&no_program, "nothing").unwrap();
    for (program, why) in [
        (older.to_str().unwrap(), "does not read"),
        // Ends well whatever it is asked.
        ("/bin/true", "does not read"),
        ("/bin/echo", "does not read"),
        (no_program.to_str().unwrap(), "cannot be executed"),
        ("/no/such/file", "No such file"),
    ] {
        let said = holdfast(&["upgrade", "--program", program, &shim.to_string()]);
        assert!(said.failed().contains(why), "{program}: {said}");
        assert!(said.stderr.contains("stays as it is"), "{program}: {said}");
        assert_eq!(told(shim)["info"]["images"], 0, "{program}");
    }
    let unknown = holdfast(&["upgrade", "no-such-container"]);
    assert!(
        unknown.failed().contains("no shim of this node has it"),
        "{unknown}"
    );
    let code = containerd
        .exec("box", "x", &[], &["sh", "-c", "exit 4"])
        .code();
    assert_eq!(code, 4);
    containerd.end_task("box");
}

/// When a process began, in ticks since the boot: its pid alone may be another's.
fn began(pid: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let after_name = stat.rsplit_once(") ").expect("a name").1;
    after_name.split(' ').nth(19).expect("a time").to_owned()
}

/// Back and forth between two programs, while as much goes through the container as its client takes.
fn upgrades_lose_no_byte(containerd: &Containerd) {
    if not_ours("upgrades_lose_no_byte") {
        return;
    }
    let flow = Flow::start(containerd, "cat");
    let shim = Shim::of(containerd, "cat").pid("cat");
    let since = began(flow.pid);
    let newer = newer(containerd);
    let older = text(&place::built("containerd-shim-holdfast-v2"));
    for program in [&newer, &older, &newer, &older, &newer] {
        flow.goes_on(flow.sent());
        let said = holdfast(&["upgrade", "--program", program, &shim.to_string()]);
        assert!(said.ok().contains("1 containers go on"), "{said}");
        let now = std::fs::read_link(format!("/proc/{shim}/exe")).unwrap();
        assert_eq!(text(&now), *program);
        assert_eq!(began(flow.pid), since, "not the same process any more");
        // containerd logs the end of any shim, so this is asked for before.
        let log = containerd.log();
        assert!(!log.contains("shim disconnected"), "{log}");
    }
    flow.finish();
}

/// Version, containers, memory, age and the last incident: of a shim that had none, and of one that had.
fn the_list_tells_what_one_asks_first(containerd: &Containerd) {
    if not_ours("the_list_tells_what_one_asks_first") {
        return;
    }
    containerd.start_task("box", &[], &["sleep", "600"]);
    let shim = Shim::of(containerd, "box").pid("box");
    let row = || {
        let table = holdfast(&["shims"]);
        let found = table.ok().lines().find_map(|line| {
            let cells: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            (cells[0] == shim.to_string()).then_some(cells)
        });
        found.unwrap_or_else(|| panic!("{table}"))
    };
    let cells = row();
    let [
        _,
        version,
        containers,
        memory,
        unit,
        age,
        incident,
        namespace,
    ] = &cells[..]
    else {
        panic!("{cells:?}");
    };
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert_eq!((containers.as_str(), unit.as_str()), ("1", "KiB"));
    assert!(
        memory.parse::<u64>().is_ok_and(|kib| kib > 100),
        "{cells:?}"
    );
    assert!(age.ends_with('s') || age.ends_with('m'), "{cells:?}");
    assert_eq!((incident.as_str(), namespace), ("-", &containerd.namespace));
    kill(Pid::from_raw(shim), Signal::SIGSEGV).unwrap();
    let incident = eventually("the incident is known", LIMIT, || {
        let cells = row();
        (cells.len() == 8 && cells[6] != "-").then(|| cells[6].clone())
    });
    // By that name its record is found.
    let said = eventually("the incident is recorded", LIMIT, || {
        let mut why = Command::new(place::built("holdfast"));
        why.args(["why", &incident])
            .env("HOLDFAST_LEDGER_DIR", containerd.path("ledger"));
        let said = deadline::run(&mut why, LIMIT);
        (said.code() == 0).then_some(said.stdout)
    });
    assert!(said.contains("HF172") && said.contains("SIGSEGV"), "{said}");
    containerd.end_task("box");
}

/// Says that it can go on, and cannot.
const IMPOSTOR: &str = r#"
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words)
{
    for (int at = 1; at + 1 < count; at++)
        if (!strcmp(words[at], "can-resume")) {
            printf("holdfast shim, resumes format %s\n", words[at + 1]);
            return 0;
        }
    HOW;
    return 1;
}
"#;

fn a_program_that_dies_or_hangs_at_its_start_gives_the_shim_back(containerd: &Containerd) {
    let test = "a_program_that_dies_or_hangs_at_its_start_gives_the_shim_back";
    if not_ours(test) {
        return;
    }
    let Some(compiler) = place::program("gcc") else {
        return holdfast_integration::skip(test, "gcc is not installed");
    };
    let source = containerd.path("impostor.c");
    std::fs::write(&source, IMPOSTOR).unwrap();
    let mut client = containerd.spawn_until_told("box", LIMIT);
    let pid = containerd.task("box").expect("a task").pid;
    let since = began(pid);
    let shim = || Shim::of(containerd, "box").pid("box");
    let program = || std::fs::read_link(format!("/proc/{}/exe", shim())).unwrap();
    let before = program();
    assert!(
        keeper_of(shim()).is_some(),
        "without a keeper nobody can know"
    );
    for (name, how) in [
        ("dies", "*(volatile int *)0 = 1"),
        ("ends", "return 1"),
        ("hangs", "for (;;) pause()"),
    ] {
        let folder = containerd.path(name);
        std::fs::create_dir(&folder).unwrap();
        let impostor = folder.join("containerd-shim-holdfast-v2");
        let mut compile = Command::new(&compiler);
        compile.arg(format!("-DHOW={how}")).arg("-o");
        deadline::run(compile.args([&impostor, &source]), LIMIT).ok();
        let said = holdfast(&[
            "upgrade",
            "--program",
            &text(&impostor),
            &shim().to_string(),
        ]);
        assert!(
            said.failed().contains("stays as it is") && said.stderr.contains("gave it back"),
            "{name}: {said}"
        );
        assert_eq!(program(), before, "{name}");
        assert_eq!(began(pid), since, "{name}");
        let code = containerd
            .exec("box", "x", &[], &["sh", "-c", "exit 4"])
            .code();
        assert_eq!(code, 4, "{name}");
        let log = containerd.log();
        assert!(!log.contains("shim disconnected"), "{name}: {log}");
    }
    // And one that can go on does.
    let said = holdfast(&[
        "upgrade",
        "--program",
        &newer(containerd),
        &shim().to_string(),
    ]);
    assert!(said.ok().contains("1 containers go on"), "{said}");
    containerd.tell_to_end("box");
    assert_eq!(client.code(), 42);
}
