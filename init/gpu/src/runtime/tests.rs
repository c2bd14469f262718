use super::*;

fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

#[test]
fn create_is_found_as_the_original_finds_it() {
    for (line, expected) in [
        ("create c1", true),
        ("--root /x create --bundle /b c1", true),
        ("delete create", true),
        ("state c1", false),
        ("start --bundle create c1", false),
        ("start -b create create", true),
        ("start --bundle=x create", true),
        ("start --bundle --bundle create", true),
    ] {
        assert_eq!(has_create(&words(line)), expected, "{line}");
    }
}

#[test]
fn the_last_bundle_counts() {
    for (line, expected) in [
        ("create c1", Some("")),
        ("create --bundle /a --bundle=/b c", Some("/b")),
        ("create -b /a", Some("/a")),
        ("create -bundle /a", Some("/a")),
        ("create c --bundle", None),
    ] {
        assert_eq!(bundle(&words(line)), expected.map(OsString::from), "{line}");
    }
}

#[test]
fn the_log_and_its_format() {
    let (file, format) = arguments::log(&words("--log /l --log-format=json create"));
    assert_eq!((file, format), (Some("/l".into()), Some("json".into())));
    assert_eq!(arguments::log(&words("create --log")), (None, None));
}

#[test]
fn names_and_modes() {
    assert!(is_its_name(
        "/usr/bin/nvidia-container-runtime.cdi".as_ref()
    ));
    assert!(!is_its_name("nvidia-container-runtime-hook".as_ref()));
    assert_eq!(forced_mode("a/nvidia-container-runtime".as_ref()), None);
    assert_eq!(
        forced_mode("nvidia-container-runtime.cdi".as_ref()),
        Some(Mode::Cdi)
    );
    assert_eq!(
        forced_mode("nvidia-container-runtime.legacy".as_ref()),
        Some(Mode::Legacy)
    );
}

#[test]
fn a_file_is_replaced_with_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    fs::write(&path, "old, and longer than what comes").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    write(&path, &serde_json::json!({"a": 1})).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\":1}\n");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
