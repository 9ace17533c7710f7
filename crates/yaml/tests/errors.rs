//! What a person sees when a file is wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use alcazar_yaml::{Reader, SourceFile, Spanned, Style, Value, YamlError, documents, parse, parse_many, render};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Mesh {
    trust_domain: Option<String>,
    #[serde(default)]
    workloads: Vec<Workload>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Workload {
    name: String,
    port: Option<Spanned<u32>>,
    protocol: Option<Protocol>,
    enabled: Option<bool>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
enum Protocol {
    Http,
    Tcp,
}

fn check(text: &str, place: Option<(usize, usize)>, message: &str, help: Option<&str>) {
    let error = parse::<Mesh>(&SourceFile::new("mesh.yaml", text)).expect_err(text);
    assert_eq!(
        (error.position(), error.message(), error.suggestion()),
        (place, message, help),
        "{text}\n{}",
        render(&error, Style::Plain)
    );
}

#[test]
fn each_mistake_has_its_place_and_a_suggestion() {
    check("trustDomian: x\n", Some((1, 1)), "unknown field `trustDomian`", Some("did you mean `trustDomain`?"));
    check("workloads:\n- name: a\n  prot: 80\n", Some((3, 3)), "unknown field `prot`", Some("did you mean `port`?"));
    check(
        "workloads:\n- name: a\n  protocol: HTPP\n",
        Some((3, 13)),
        "unknown value `HTPP`",
        Some("did you mean `HTTP`?"),
    );
    check("workloads:\n- port: 80\n", Some((2, 3)), "`name` is missing", Some("add `name:`"));
    check(
        "workloads:\n- name: a\n  name: b\n",
        Some((3, 3)),
        "the field `name` stands twice",
        Some("keep one of them"),
    );
    check(
        "workloads:\n- name: a\n  enabled: yes\n",
        Some((3, 12)),
        "expected a boolean",
        Some("write `true` or `false`"),
    );
    check("", None, "the file holds no document", None);
}

#[test]
fn broken_yaml_is_shown_where_it_breaks() {
    for text in [
        "workloads: [\n",
        "workloads:\n  - a\n b: c\n",
        "a: \"x\n",
        "workloads:\n\t- name: b\n",
        "a: *b\n",
        "a: !x b\n",
    ] {
        let error = parse::<Mesh>(&SourceFile::new("mesh.yaml", text)).expect_err(text);
        assert!(error.position().is_some() && !error.message().contains("line "), "{text:?}: {error}");
    }
}

#[test]
fn a_second_document_is_refused_where_one_is_wanted_and_read_where_many_are() {
    let file = SourceFile::new("m.yaml", "trustDomain: a\n---\ntrustDomain: b\n---\n");
    assert_eq!(Protocol::Http, parse_one("HTTP"));
    assert!(parse::<Mesh>(&file).unwrap_err().message().contains("second document"));
    let all: Vec<Mesh> = parse_many(&file).unwrap();
    let domains: Vec<_> = all.iter().filter_map(|mesh| mesh.trust_domain.as_deref()).collect();
    assert_eq!(domains, ["a", "b"]);
}

fn parse_one(protocol: &str) -> Protocol {
    let text = format!("workloads: [{{name: a, enabled: true, protocol: {protocol}}}]");
    let mesh: Mesh = parse(&SourceFile::new("m.yaml", text)).unwrap();
    let workload = mesh.workloads.into_iter().next().unwrap();
    assert_eq!((workload.name.as_str(), workload.enabled), ("a", Some(true)));
    workload.protocol.unwrap()
}

#[test]
fn an_error_of_meaning_points_at_the_value() {
    let file = SourceFile::new("mesh.yaml", "workloads:\n- name: a\n  port: 70000\n");
    let mesh: Mesh = parse(&file).unwrap();
    let port = mesh.workloads[0].port.as_ref().unwrap();
    let error =
        YamlError::at(&file, port, format!("port {} is out of 1..65535", port.value)).with_help("choose another");
    assert_eq!(error.to_string(), "mesh.yaml:3:9: port 70000 is out of 1..65535 (choose another)");
    insta::assert_snapshot!(render(&error, Style::Plain), @r"
      × port 70000 is out of 1..65535
       ╭─[mesh.yaml:3:9]
     2 │ - name: a
     3 │   port: 70000
       ·         ──┬──
       ·           ╰── here
       ╰────
      help: choose another
    ");
}

#[test]
fn scalars_are_read_as_they_were_written() {
    let file =
        SourceFile::new("x.yaml", "a: [1.10, 0x1F, on, ~, 'q', true, 2020-01-01, 007]\nb: &x 1.50\nc: *x\n8080: é\n");
    let document = documents(&file).unwrap().remove(0);
    let Value::Mapping(fields) = document.value else { panic!("{document:?}") };
    let Value::List(items) = &fields[0].1.value else { panic!("{fields:?}") };
    let texts: Vec<_> = items.iter().map(|item| item.value.clone()).collect();
    let expected = ["1.10", "0x1F", "on", "", "q", "true", "2020-01-01", "007"]
        .map(|text| if text.is_empty() { Value::Null } else { Value::Scalar(text.to_owned()) });
    assert_eq!(texts, expected);
    assert_eq!(fields[2].1.value, Value::Scalar("1.50".to_owned()));
    assert_eq!(fields[3].0.value, Value::Scalar("8080".to_owned()));
    assert_eq!(fields[3].1.value, Value::Scalar("é".to_owned()));
    assert_eq!(file.position(items[1].span.start), (1, 11));
    assert_eq!(file.text().get(items[5].span.clone()), Some("true"));
}

#[test]
fn a_file_cannot_ask_for_too_much() {
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let previous = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [previous.as_str(); 10].join(", "));
    }
    let long = format!("a: \"{}\"\n", "x".repeat(alcazar_yaml::MAX_FILE_BYTES));
    let many = "---\na: b\n".repeat(alcazar_yaml::MAX_DOCUMENTS + 1);
    let anchors: String = (0..2_000).map(|n| format!("- &a{n} x\n")).collect();
    for (text, message) in [(deep, "nest"), (bomb, "alias"), (long, "bytes"), (many, "documents"), (anchors, "anchors")]
    {
        let error = documents(&SourceFile::new("big.yaml", text)).expect_err(message);
        assert!(error.message().contains(message), "{error}");
    }
}

#[test]
fn of_very_many_errors_some_are_told() {
    let text: String = (0..50_000).map(|n| format!("key{n}: x\n")).collect();
    let file = SourceFile::new("many.yaml", text);
    let nodes = documents(&file).unwrap();
    let mut reader = Reader::new(&file);
    let mapping = reader.mapping(&nodes[0], "document").unwrap();
    reader.finish(mapping);
    assert_eq!(reader.error_count(), 50_000);
    let errors = reader.into_errors();
    assert_eq!(errors.len(), 101);
    assert_eq!(errors.iter().last().unwrap().message(), "there are 49900 more errors in this file");
}

#[test]
fn a_file_cannot_steer_the_terminal() {
    let file = SourceFile::new("x\u{1b}[31m.yaml", "a: \"\u{7f}\"\nb\n");
    let error = YamlError::new(&file, 4..5, "bad \u{1b}[2J text");
    assert!(!render(&error, Style::Plain).contains('\u{1b}'));
    // In colour neither, whichever part it stands in.
    let clean = SourceFile::new("x.yaml", "a: b\n");
    for error in [
        error,
        YamlError::new(&SourceFile::new("x.yaml", "# \u{1b}]0;mine\u{7}\na: b\n"), 14..15, "bad"),
        YamlError::new(&clean, 0..1, "bad \u{1b}[2J text"),
        YamlError::new(&clean, 0..1, "bad").with_label("\u{1b}[2J"),
        YamlError::new(&clean, 0..1, "bad").with_help("\u{9b}2J"),
        YamlError::new(&clean, 0..1, "bad").with_also(3..4, "\u{1b}[2J"),
    ] {
        assert!(!render(&error, Style::Colour).contains(['\u{1b}', '\u{9b}', '\u{7}']), "{error:?}");
    }
    assert!(render(&YamlError::new(&clean, 0..1, "bad"), Style::Colour).contains('\u{1b}'));
}
