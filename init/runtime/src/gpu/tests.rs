use std::io;

use holdfast_gpu::class::Class;
use holdfast_gpu::legacy::NotFound;
use holdfast_record::exit::ExitStatus;
use holdfast_record::reason::Reason;

use super::*;
use crate::hooks::Output;

#[test]
fn handlers_by_their_words() {
    assert_eq!(Handler::parse(""), Some(Handler::Off));
    assert_eq!(Handler::parse("off"), Some(Handler::Off));
    assert_eq!(Handler::parse("auto"), Some(Handler::Configured));
    assert_eq!(Handler::parse("cdi"), Some(Handler::Fixed(Mode::Cdi)));
    assert_eq!(
        Handler::parse("jit-cdi"),
        Some(Handler::Fixed(Mode::JitCdi))
    );
    assert_eq!(Handler::parse("legacy"), Some(Handler::Fixed(Mode::Legacy)));
    assert_eq!(Handler::parse("Legacy"), None);
    assert_eq!(Handler::parse("csv"), None);
}

#[test]
fn what_seems_to_ask_without_a_configuration() {
    let asks = |env: &[&str]| seems_to_ask(&Image::lenient(env.iter().copied()));
    assert!(asks(&["NVIDIA_VISIBLE_DEVICES=0"]));
    assert!(asks(&["CUDA_VERSION=9.0"]));
    assert!(!asks(&["NVIDIA_VISIBLE_DEVICES=void", "CUDA_VERSION=9.0"]));
    assert!(!asks(&["NVIDIA_VISIBLE_DEVICES= "]));
    assert!(!asks(&["CUDA_VERSION=12", "NVIDIA_REQUIRE_CUDA=cuda>=12"]));
    assert!(!asks(&["PATH=/bin", "BROKEN"]));
    let mut image = Image::default();
    image
        .annotations
        .insert("cdi.k8s.io/x".to_owned(), "nvidia.com/gpu=0".to_owned());
    assert!(seems_to_ask(&image));
}

#[test]
fn only_a_name_of_the_configuration_can_make_a_container_ask() {
    let mut image = Image::lenient(["PATH=/bin", "R1=0"]);
    image
        .annotations
        .insert("io.kubernetes.cri.sandbox-id".to_owned(), "x".to_owned());
    let could = |text: &str| could_ask(&image, text);
    assert!(!could(""));
    assert!(!could(
        "#swarm-resource = \"R1\"\nannotation-prefixes = [\"cdi.k8s.io/\"] # don't\n"
    ));
    assert!(could("swarm-resource = \"R2, R1\""));
    assert!(could("swarm-resource = 'R1'"));
    assert!(could("annotation-prefixes = ['io.kub']"));
    // What this does not read as TOML does is left to who does.
    assert!(could("swarm-resource = \"\\u0052\""));
    assert!(could("swarm-resource = \"\"\"\nR1\"\"\""));
    assert!(could("[holdfast]\nas-original = []"));
}

#[test]
fn rules_come_after_those_that_are_there() {
    let supported = capabilities::supported(&Config::defaults()).unwrap();
    let image = Image::lenient(["NVIDIA_VISIBLE_DEVICES=0"]);
    let request = Request::find(&image, &Config::defaults(), &supported).unwrap();
    let mut call = Call {
        program: Program {
            path: "/cli".into(),
            search_path: None,
        },
        config: Config::defaults(),
        request: request.value.unwrap(),
        no_cgroups: true,
        nodes: Ok(Nodes {
            gpus: vec!["nvidia0".to_owned()],
            numbers: vec![nodes::Number {
                major: 195,
                minor: 0,
            }],
        }),
        limit: Duration::from_secs(1),
    };
    let rule = json!({"allow": true, "type": "c", "major": 195, "minor": 0, "access": "rw"});
    let mut spec = json!({"linux": {"resources": {"devices": [{"allow": false}]}}});
    allow(&mut spec, &call);
    assert_eq!(
        spec["linux"]["resources"]["devices"],
        json!([{"allow": false}, rule])
    );
    let mut bare = json!({});
    allow(&mut bare, &call);
    assert_eq!(bare["linux"]["resources"]["devices"], json!([rule]));
    call.no_cgroups = false;
    let mut none = json!({});
    allow(&mut none, &call);
    assert_eq!(none, json!({}));
}

#[test]
fn reasons_keep_the_words_of_the_cli_apart() {
    let output = Output {
        stdout: String::new(),
        stderr: "its words".to_owned(),
    };
    let failed = Error::Failed {
        class: Class::DriverNotLoaded,
        status: ExitStatus::Exited(1),
        attempts: 1,
        output: Box::new(output),
    };
    let text = failed.to_string();
    assert!(
        text.contains("driver not loaded") && text.contains("stderr: its words"),
        "{text}"
    );
    let Reason::GpuStageFailed { step, text, stderr } = failed.reason() else {
        panic!("{:?}", failed.reason());
    };
    assert_eq!(
        (step.as_str(), stderr.as_str()),
        ("legacy mode", "its words")
    );
    assert!(
        !text.contains("its words") && text.contains("modprobe"),
        "{text}"
    );
    let missing = Error::NotFound(NotFound("/bin".into()));
    assert_eq!(missing.reason().code(), "HF181");
    let start = Error::Start {
        doing: "execute it",
        source: io::ErrorKind::NotFound.into(),
    };
    assert!(matches!(start.reason(), Reason::GpuStageFailed { .. }));
}
