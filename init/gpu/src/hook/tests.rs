use proptest::prelude::*;

use super::*;

fn flags(words: &[&str]) -> Result<Command, String> {
    flags::parse(words.iter().map(OsString::from)).map_err(|error| error.to_string())
}

#[test]
fn flags_as_go_reads_them() {
    let prestart = |config: Option<&str>, debug| {
        Ok(Command::Prestart(Flags {
            config: config.map(OsString::from),
            debug,
        }))
    };
    assert_eq!(flags(&["prestart", "-frob"]), prestart(None, false));
    assert_eq!(
        flags(&["-debug", "--config", "/c", "prestart"]),
        prestart(Some("/c"), true)
    );
    assert_eq!(
        flags(&["--config=/c=d", "-debug=F", "--", "prestart"]),
        prestart(Some("/c=d"), false)
    );
    assert_eq!(flags(&["poststop"]), Ok(Command::Nothing));
    assert_eq!(flags(&["-version"]), Ok(Command::Version));
    assert_eq!(flags(&["-h", "prestart"]), Ok(Command::Help));
    for bad in [
        &["createRuntime"][..],
        &[],
        &["-config"],
        &["-frob", "prestart"],
        &["---debug", "prestart"],
        &["-=x", "prestart"],
        &["-debug=maybe", "prestart"],
        &["-", "prestart"],
    ] {
        assert!(flags(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn its_names_with_and_without_a_folder() {
    assert!(is_its_name("nvidia-container-runtime-hook".as_ref()));
    assert!(is_its_name("/usr/bin/nvidia-container-toolkit".as_ref()));
    assert!(!is_its_name("nvidia-container-runtime".as_ref()));
    assert!(!is_its_name("".as_ref()));
}

#[test]
fn the_old_name_of_the_bundle() {
    let read = |text: &str| State::read(text.as_bytes()).unwrap();
    assert_eq!(read("{\"bundlePath\": \"/old\"}").bundle, "/old");
    assert_eq!(
        read("{\"bundle\": \"/new\", \"bundlePath\": \"/old\"}").bundle,
        "/new"
    );
    assert_eq!(
        read("null"),
        State {
            pid: 0,
            bundle: String::new()
        }
    );
    assert!(State::read(b"[]").is_err());
    assert!(State::read(b"{\"pid\": 1.5}").is_err());
}

proptest! {
    #[test]
    fn no_state_panics(text in "[\\[\\]{}\":,a-z0-9. ]{0,80}") {
        read_state(text.as_bytes());
        read_spec(text.as_bytes());
    }
}
