//! The files in `ops/`: they parse, agree with the server's limits, and are what `docs/deployment.md` says.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nodetracker_server::{Config, Limits};
use serde_json::Value;

use crate::support::{config_file, stderr, stdout};

fn ops(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("ops").join(file)
}

fn deployment() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/deployment.md")).unwrap()
}

/// The objects of the Kubernetes manifest, also the last one, which is a comment.
fn manifest() -> Vec<Value> {
    let text = fs::read_to_string(ops("kubernetes.yaml")).unwrap();
    let (objects, policy) = text.split_once("\n# ---\n# ").unwrap();
    let policy = policy.replace("\n# ", "\n");
    serde_saphyr::from_multiple(&format!("{objects}\n---\n{policy}")).unwrap()
}

fn object<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut of_kind = objects.iter().filter(|object| object["kind"] == kind);
    let found = of_kind.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(of_kind.next().is_none(), "two objects {kind}");
    found
}

/// The configuration in the manifest.
fn config(objects: &[Value]) -> Config {
    let text = object(objects, "ConfigMap")["data"]["nodetracker.yaml"]
        .as_str()
        .unwrap();
    let (_folder, file) = config_file(text);
    Config::read(&file).unwrap()
}

#[test]
fn the_manifest_gives_the_tracker_time_to_stop() {
    let objects = manifest();
    let config = config(&objects);
    let pod = &object(&objects, "StatefulSet")["spec"]["template"]["spec"];
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    // The last snapshot, too.
    let needed = config.shutdown_delay.value + Limits::default().drain + Duration::from_secs(30);
    assert!(
        grace > needed + Duration::from_secs(5),
        "{grace:?} is not enough for {needed:?}"
    );

    let tracker = &pod["containers"][0];
    let port = config
        .listen_addr
        .value
        .rsplit_once(':')
        .unwrap()
        .1
        .parse::<u64>()
        .unwrap();
    assert_eq!(tracker["ports"][0]["containerPort"], port);
    // The readiness changes before the port closes.
    let ready = &tracker["readinessProbe"];
    let noticed = ready["periodSeconds"].as_u64().unwrap() * ready["failureThreshold"].as_u64().unwrap();
    assert!(Duration::from_secs(noticed) < config.shutdown_delay.value);
    assert_eq!(tracker["securityContext"]["readOnlyRootFilesystem"], true);
}

#[test]
fn the_manifest_keeps_the_routes_and_asks_all_threads_for_their_health() {
    let objects = manifest();
    let config = config(&objects);
    let set = &object(&objects, "StatefulSet")["spec"];
    let pod = &set["template"]["spec"];
    let tracker = &pod["containers"][0];

    let claim = &set["volumeClaimTemplates"][0]["metadata"]["name"];
    let mounts = tracker["volumeMounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| &mount["name"] == claim).unwrap();
    let data_dir = config.data_dir.unwrap().value;
    assert_eq!(mount["mountPath"], data_dir.to_str().unwrap());
    assert_eq!(pod["securityContext"]["fsGroup"], pod["securityContext"]["runAsGroup"]);

    // Over HTTP: the kubelet speaks gRPC without TLS, and has no certificate.
    let port = &tracker["ports"][1];
    assert_eq!(config.diag_addr.unwrap().value, format!(":{}", port["containerPort"]));
    for (probe, path) in [
        ("startupProbe", "/readyz"),
        ("readinessProbe", "/readyz"),
        ("livenessProbe", "/healthz"),
    ] {
        assert_eq!(tracker[probe]["httpGet"]["path"], path, "{probe}");
        assert_eq!(tracker[probe]["httpGet"]["port"], port["name"], "{probe}");
    }
    let policy = object(&objects, "NetworkPolicy");
    let rules = policy["spec"]["ingress"].as_array().unwrap();
    let guarded = rules
        .iter()
        .find(|rule| rule["ports"][0]["port"] == port["name"])
        .unwrap();
    assert!(guarded["from"].is_array(), "{guarded}");
}

#[test]
fn the_objects_of_the_manifest_select_the_same_pods() {
    let objects = manifest();
    let set = object(&objects, "StatefulSet");
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    assert!(labels.is_object());
    assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&object(&objects, "Service")["spec"]["selector"], labels);
    let budget = object(&objects, "PodDisruptionBudget");
    assert_eq!(&budget["spec"]["selector"]["matchLabels"], labels);
    let policy = object(&objects, "NetworkPolicy");
    assert_eq!(&policy["spec"]["podSelector"]["matchLabels"], labels);
    assert_eq!(
        set["spec"]["serviceName"],
        object(&objects, "Service")["metadata"]["name"]
    );
}

#[test]
fn the_unit_tries_again_for_ever_unless_the_configuration_is_wrong() {
    let unit = fs::read_to_string(ops("nodetracker.service")).unwrap();
    for line in [
        "Restart=on-failure",
        "StartLimitIntervalSec=0",
        "RestartPreventExitStatus=2",
    ] {
        assert!(unit.lines().any(|of_unit| of_unit == line), "{line}");
    }
}

#[test]
fn the_units_pass_systemds_checks_as_documented() {
    let checked = Command::new(ops("check-units"))
        .arg(env!("CARGO_BIN_EXE_nodetracker"))
        .output()
        .unwrap();
    if checked.status.code() == Some(2) {
        return eprintln!("SKIPPED: {}", stderr(&checked));
    }
    assert!(checked.status.success(), "{}", stderr(&checked));
    // Other versions of systemd count other things.
    let printed = stdout(&checked);
    let version = |text: &str| {
        text.split_once("# systemd ")
            .map(|(_, rest)| rest.lines().next().unwrap().to_owned())
    };
    let documented = deployment();
    match version(&documented) == version(&printed) {
        true => assert!(documented.contains(&printed), "docs/deployment.md lacks:\n{printed}"),
        false => eprintln!("SKIPPED: docs/deployment.md is about another version of systemd"),
    }
}
