//! Every way to give a key, and every way to get one wrong.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use platform::config::{Config, ConfigError, KeysAt, LogFormat, Signature, WorkerDevice, env_name};

fn example_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config.example.toml")
}

fn load(text: &str, env: &[(&str, &str)], overrides: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("luthier.toml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<_> = overrides
        .iter()
        .map(|(key, value)| (*key, value.to_string()))
        .collect();
    Config::default()
        .layered(Some(&path), os(env), &overrides)
        .map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), ""))
}

fn os(env: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    env.iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let file = "[worker]\nthreads = 1\nmax_sequences = 1\nbeat_interval_s = 1";
    let env = [
        ("LUTHIER_WORKER_THREADS", "2"),
        ("LUTHIER_WORKER_MAX_SEQUENCES", "2"),
        ("HOME", "/"),
    ];
    let config = load(file, &env, &[("worker.threads", "3")]).unwrap();
    let worker = &config.worker;
    assert_eq!(
        (worker.threads, worker.max_sequences, worker.beat_interval_s),
        (3, 2, 1)
    );
    assert_eq!(worker.checkpoint_interval_s, 300);
}

#[test]
fn wrong_configurations_say_what_is_wrong_where_and_what_to_do() {
    let cases = [
        (
            "[api]\nlisten_on = \"127.0.0.1:1\"",
            "/luthier.toml: unknown key `api.listen_on`; did you mean `api.listen`?",
        ),
        (
            "[api]\ndoor_listen = \"127.0.0.1:1\"",
            "/luthier.toml: unknown key `api.door_listen`; did you mean `scheduler.door_listen`?",
        ),
        (
            "datadir = \"x\"",
            "/luthier.toml: unknown key `datadir`; did you mean `data_dir`?",
        ),
        (
            "[cluster]\nfoo = 1",
            "/luthier.toml: unknown key `cluster.foo`; config.example.toml lists every key",
        ),
        (
            "[worker]\nthreads = \"two\"",
            "/luthier.toml: worker.threads: \"two\" is not a whole number that is not negative",
        ),
        (
            "[worker]\nthreads = -1",
            "/luthier.toml: worker.threads: -1 is not a whole number that is not negative",
        ),
        (
            "[worker]\ndevice = \"gpu\"",
            "/luthier.toml: worker.device: \"gpu\" is not \"auto\", \"cpu\", \"cuda\" or \"cuda:N\"",
        ),
        (
            "[log]\nformat = \"xml\"",
            "/luthier.toml: log.format: \"xml\" is not \"text\" or \"json\"",
        ),
        (
            "[database]\nurl = 5",
            "/luthier.toml: database.url: the value is not text",
        ),
        (
            "a = 1\nb = ",
            "/luthier.toml is not valid TOML: line 2: string values must be quoted, expected literal string",
        ),
        (
            "[database]\nurl = \"mysql://me:hunter2@db/x\"",
            "database.url: `mysql` is not one of postgres:, postgresql:, sqlite:",
        ),
        (
            "[objects]\nurl = \"s3://bucket\"",
            "objects.access_key_id is not set; set it in the file or as LUTHIER_OBJECTS_ACCESS_KEY_ID",
        ),
        (
            "[secrets]\nservice_key = \"hunter2\"",
            "secrets.service_key: 7 bytes are too few, at least 32 are needed; `openssl rand -hex 32` prints a good one",
        ),
        (
            "[secrets]\nservice_key = \"x\"\nservice_key_file = \"y\"",
            "/luthier.toml: `secrets.service_key` and `secrets.service_key_file` are both given; keep one of them",
        ),
        (
            "[api]\ntls_key = \"k.pem\"",
            "api.tls_certificate is not set; set it in the file or as LUTHIER_API_TLS_CERTIFICATE",
        ),
        (
            "[scheduler]\nlease_ttl_s = 14",
            "scheduler.lease_ttl_s: 14 s leaves no room for a lost report: it must be at least three times worker.beat_interval_s (5 s)",
        ),
    ];
    for (file, expected) in cases {
        assert_eq!(load(file, &[], &[]).unwrap_err(), expected, "{file}");
    }
    let unknown = load("", &[("LUTHIER_API_LISTN", "x")], &[]).unwrap_err();
    assert_eq!(
        unknown,
        "environment: unknown key `LUTHIER_API_LISTN`; did you mean `LUTHIER_API_LISTEN`?"
    );
    let bad = load("", &[("LUTHIER_API_LISTEN", "8080")], &[]).unwrap_err();
    assert_eq!(
        bad,
        "LUTHIER_API_LISTEN: \"8080\" is not an address and a port, such as \"127.0.0.1:8080\""
    );
}

#[test]
fn a_worker_s_device_is_the_cpu_a_gpu_by_its_number_or_what_there_is() {
    let device = |text: &str| load("", &[], &[("worker.device", text)]).map(|c| c.worker.device);
    let gpu = |ordinal| Ok(WorkerDevice::Cuda { ordinal });
    for (text, expected) in [
        ("auto", Ok(WorkerDevice::Auto)),
        ("cpu", Ok(WorkerDevice::Cpu)),
        ("cuda", gpu(0)),
        ("cuda:0", gpu(0)),
        ("cuda:3", gpu(3)),
    ] {
        assert_eq!(device(text), expected, "{text}");
    }
    for text in ["", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:0,1"] {
        assert!(device(text).is_err(), "{text:?}");
    }
}

#[test]
fn an_issuer_is_whole_or_refused() {
    let issuer = |more: &str| {
        let text = format!("[auth]\nissuers = [{{ issuer = \"i\", audience = \"a\", {more} }}]");
        load(&text, &[], &[]).map(|config| config.auth.issuers)
    };
    let rest = "algorithms = [\"RS256\"]";
    let issuers = issuer(&format!("jwks_url = \"https://id/keys\", {rest}")).unwrap();
    assert_eq!(issuers[0].keys, KeysAt::Url("https://id/keys".to_owned()));
    assert_eq!(issuers[0].project_claim, "project_id");
    issuer(&format!("jwks_file = \"keys.json\", {rest}")).unwrap();
    issuer(&format!("jwks_url = \"http://127.0.0.1:80/keys\", {rest}")).unwrap();
    for bad in [
        rest.to_owned(),
        format!("jwks_url = \"http://id/keys\", {rest}"),
        format!("jwks_url = \"http://127.0.0.1.evil/keys\", {rest}"),
        format!("jwks_url = \"https://id\", jwks_file = \"keys.json\", {rest}"),
        "jwks_file = \"keys.json\", algorithms = []".to_owned(),
        "jwks_file = \"keys.json\", algorithms = [\"HS256\"]".to_owned(),
        "jwks_file = \"keys.json\", algorithms = [\"none\"]".to_owned(),
        format!("jwks_file = \"keys.json\", aud = \"x\", {rest}"),
    ] {
        assert!(
            issuer(&bad).unwrap_err().contains("a list of issuers"),
            "{bad}"
        );
    }
    let json = r#"[{"issuer": "i", "audience": "a", "jwks_file": "k", "algorithms": ["EdDSA"]}]"#;
    let config = load("", &[("LUTHIER_AUTH_ISSUERS", json)], &[]).unwrap();
    assert_eq!(config.auth.issuers[0].algorithms, [Signature::EdDSA]);
}

#[test]
fn a_public_listener_needs_tls_or_the_word_insecure() {
    let public = ("api.listen", "0.0.0.0:8080");
    assert!(
        load("", &[], &[public])
            .unwrap_err()
            .contains("without TLS")
    );
    load("", &[], &[public, ("api.insecure", "true")]).unwrap();
    load(
        "",
        &[],
        &[public, ("api.tls_key", "k"), ("api.tls_certificate", "c")],
    )
    .unwrap();
    load("", &[], &[("api.listen", "[::1]:8080")]).unwrap();
}

#[test]
fn a_credential_can_come_from_a_file_and_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pepper");
    std::fs::write(&path, "hunter2hunter2hunter2hunter2hunter2\n").unwrap();
    let path = path.to_str().unwrap();
    for config in [
        load(&format!("[secrets]\nkey_pepper_file = {path:?}"), &[], &[]).unwrap(),
        load("", &[("LUTHIER_SECRETS_KEY_PEPPER_FILE", path)], &[]).unwrap(),
    ] {
        assert_eq!(
            config.key_pepper().unwrap().expose(),
            "hunter2hunter2hunter2hunter2hunter2"
        );
        assert!(!format!("{config:?}").contains("hunter2"));
    }
    let missing = load("[objects]\nregion_file = \"x\"", &[], &[]).unwrap_err();
    assert!(
        missing.contains("unknown key `objects.region_file`"),
        "{missing}"
    );
}

#[test]
fn the_embedded_form_needs_nothing_and_keeps_its_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let mut config = Config::embedded(dir.path())
            .layered(None, os(&[]), &[])
            .expect("nothing is needed");
        config.ensure_secrets().unwrap();
        config
    };
    let (first, second) = (open(), open());
    assert_eq!(first.key_pepper().unwrap(), second.key_pepper().unwrap());
    assert_ne!(first.key_pepper().unwrap(), first.service_key().unwrap());
    assert_eq!(first.service_key().unwrap().expose().len(), 64);
    let secrets = std::fs::metadata(dir.path().join("secrets/key_pepper")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&secrets.permissions()) & 0o777,
        0o600
    );

    let place = dir.path().display();
    assert_eq!(
        first.database.url.expose(),
        &format!("sqlite://{place}/luthier.db?mode=rwc")
    );
    assert_eq!(first.objects.url, format!("file://{place}/objects"));
    assert_eq!(first.queue.url.expose(), "memory:");
    assert_eq!(
        (
            first.scheduler.door_listen.port(),
            first.worker.listen.port()
        ),
        (0, 0)
    );
    assert_eq!(first.door_url(), None);
}

#[test]
fn moving_data_dir_moves_what_lies_in_it() {
    let config = Config::embedded(Path::new("/a"))
        .layered(None, os(&[("LUTHIER_DATA_DIR", "/b")]), &[])
        .unwrap();
    assert_eq!(
        config.database.url.expose(),
        "sqlite:///b/luthier.db?mode=rwc"
    );
    assert_eq!(config.objects.url, "file:///b/objects");
    assert_eq!(config.cache_dir(), Path::new("/b/cache"));
}

#[test]
fn the_data_directory_of_the_command_line_wins_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    // Names data_dir = "/var/lib/luthier" and an empty database.url.
    let config = Config::load_embedded(dir.path(), Some(&example_path()), &[]).unwrap();
    assert_eq!(config.data_dir, dir.path());
    let place = dir.path().display();
    assert_eq!(
        config.database.url.expose(),
        &format!("sqlite://{place}/luthier.db?mode=rwc")
    );
    assert_eq!(config.objects.url, format!("file://{place}/objects"));
}

#[test]
fn where_hosts_share_something_a_missing_secret_is_an_error() {
    let on_postgres = "[database]\nurl = \"postgres://db/luthier\"";
    let worker_host =
        "[objects]\nurl = \"s3://b\"\naccess_key_id = \"k\"\nsecret_access_key = \"s\"";
    for file in [on_postgres, worker_host] {
        let mut config = load(file, &[], &[]).unwrap();
        config.ensure_secrets().unwrap();
        let error = config.service_key().unwrap_err();
        assert!(
            matches!(
                error,
                ConfigError::Missing {
                    key: "secrets.service_key",
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn the_compose_file_and_the_units_set_keys_that_exist() {
    let deploy = example_path().parent().unwrap().to_owned();
    let names: Vec<String> = Config::keys()
        .into_iter()
        .flat_map(|key| [env_name(&key.name), format!("{}_FILE", env_name(&key.name))])
        .collect();
    let mut n_found = 0;
    for file in std::fs::read_dir(deploy).unwrap() {
        let path = file.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        if path.ends_with("config.example.toml") {
            continue;
        }
        for word in text.split(|c: char| !c.is_ascii_uppercase() && c != '_') {
            // A word that ends in an underscore is a prefix in prose.
            if word.starts_with("LUTHIER_") && !word.ends_with('_') && !word.contains("_BUILD_") {
                n_found += 1;
                assert!(
                    names.iter().any(|name| name == word),
                    "{}: {word}",
                    path.display()
                );
            }
        }
    }
    assert!(n_found > 10, "{n_found} keys found");
}

#[test]
fn the_example_file_holds_every_key_once_with_its_default() {
    let text = std::fs::read_to_string(example_path()).unwrap();
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = format!("{name}.");
            continue;
        }
        // "# text" is a comment; "#key = value" is a key without a default.
        let assignment = line.strip_prefix('#').unwrap_or(line);
        if assignment.starts_with(' ') || !assignment.contains(" = ") {
            continue;
        }
        let table: toml::Table = assignment
            .parse()
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        for (key, value) in table {
            let name = format!("{section}{key}");
            let (_, _, value) = (&name, &key, as_text(&value));
            let env = [(env_name(&name), value)];
            let env: Vec<_> = env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            // A value of its own may need a companion (TLS); a wrong type never passes.
            match Config::default().layered(None, os(&env), &[]) {
                Ok(_) | Err(ConfigError::Missing { .. }) => {}
                Err(error) => panic!("{line}: {error}"),
            }
            assert!(found.insert(name.clone()), "{name} is in the example twice");
        }
    }
    let keys: BTreeSet<String> = Config::keys().into_iter().map(|key| key.name).collect();
    assert_eq!(
        found, keys,
        "left: the example file; right: the keys of Config"
    );

    let config = Config::default()
        .layered(Some(&example_path()), os(&[]), &[])
        .unwrap();
    let defaults = Config::default().layered(None, os(&[]), &[]).unwrap();
    assert_eq!(
        format!("{config:?}"),
        format!("{defaults:?}"),
        "left: the example file"
    );
    assert_eq!(config.log.format, LogFormat::Text);
}

fn as_text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(_) => String::new(),
        value => value.to_string(),
    }
}
