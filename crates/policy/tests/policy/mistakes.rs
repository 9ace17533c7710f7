//! What a person sees who made a mistake in a policy document.

use alcazar_policy::{Activation, Policy, Settings};
use alcazar_yaml::{SourceFile, Style, YamlErrors, render_all};

use crate::support::{Call, Place};

fn errors(text: &str) -> YamlErrors {
    Policy::from_files(&[SourceFile::new("p.yaml", text)], &Settings::default()).expect_err(text)
}

fn role(rule: &str) -> String {
    format!(
        "apiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRole\nmetadata: {{name: r, namespace: n}}\nspec:\n  rules:\n  - {rule}\n"
    )
}

fn binding(spec: &str) -> String {
    format!(
        "apiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRoleBinding\nmetadata: {{name: b, namespace: n}}\nspec:\n  {spec}\n"
    )
}

fn subject(subject: &str) -> String {
    binding(&format!("subjects: [{subject}]\n  roleRef: {{kind: ServiceRole, name: r}}"))
}

fn config(spec: &str) -> String {
    format!("apiVersion: rbac.istio.io/v1alpha1\nkind: ClusterRbacConfig\nmetadata: {{name: default}}\nspec: {spec}\n")
}

#[test]
fn each_mistake_is_told_in_one_line() {
    let mistakes = [
        role("servces: [\"*\"]"),
        role("not_path: [/a]"),
        role("{services: [\"*\"], not_paths: [/a], notPaths: [/b]}"),
        role("services: x"),
        role("services: []"),
        role("services: [\"\"]"),
        role("services: [\"a*b\"]"),
        role("services: [\"*a*\"]"),
        role("{}"),
        role("{methods: [GET], notMethods: [PUT]}"),
        role("{ports: [80], notPorts: [81]}"),
        role("ports: [70000]"),
        role("ports: [0]"),
        role("ports: [http]"),
        role("{ports: [80], constraints: [{key: destination.port, values: [\"80\"]}]}"),
        role("constraints: [{key: \"destination.label[v]\", values: [a]}]"),
        role("constraints: [{key: \"destination.labels[v]\", values: []}]"),
        role("constraints: [{key: \"destination.labels[v]\"}]"),
        role("constraints: [{key: \"request.headers[a]\", values: [x]}, {key: \"request.headers[A]\", values: [y]}]"),
        role("constraints: [{key: \"request.headers[:path]\", values: [x]}]"),
        role("constraints: [{key: \"request.headers[a b]\", values: [x]}]"),
        role("constraints: [{key: destination.ip, values: [\"10.0.0.0/33\"]}]"),
        role("constraints: [{key: destination.user, values: [cluster.local/ns/a/sa/b]}]"),
        role("paths: [\"/a/../b\"]"),
        role("paths: [\"/a//*\"]"),
        role("paths: [\"/a?b=*\"]"),
        role("paths: [\"a/b\"]"),
        role("notPaths: [\"/%61dmin\"]"),
        role("notPaths: [\"/a%2fb\"]"),
        role("hosts: [\"a.com:80\"]"),
        role("hosts: [\"*:80\"]"),
        role("hosts: [\"http://a.com\"]"),
        role("paths: /a"),
        role("paths:"),
        role("constraints: []"),
        role("{services: [a], constraints: []}"),
        role("hosts: [\"*.\"]"),
        role("notHosts: [\"%61dmin\"]"),
        subject("{}"),
        subject("{user: \"spiffe://cluster.local/ns/a/sa/b\"}"),
        subject("{names: [\"*\"]}"),
        subject("{notNames: [allUsers]}"),
        subject("{names: []}"),
        subject("{ips: [10.0.0]}"),
        subject("{properties: {source.namespaces: a}}"),
        subject("{properties: {source.ip: \"*\"}}"),
        subject("{properties: {}}"),
        subject("{properties: {source.principal: allUsers}}"),
        subject("{properties: {source.principal: a, source.user: b}}"),
        binding("subjects: []\n  role: r"),
        binding("role: r"),
        binding("subjects: [{user: a}]"),
        binding("subjects: [{user: a}]\n  role: \"\""),
        binding("subjects: [{user: a}]\n  role: \"a/b\""),
        binding("subjects: [{user: a}]\n  role: r\n  roleRef: {kind: ServiceRole, name: r}"),
        binding("subjects: [{user: a}]\n  roleRef: {kind: Role, name: r}"),
        binding("subjects: [{user: a}]\n  role: r\n  mode: PERMISIVE"),
        binding("subjects: [{user: a}]\n  actions: []"),
        config("{}"),
        config("{mode: on}"),
        config("{mode: ON_WITH_INCLUSION}"),
        config("{mode: ON_WITH_EXCLUSION, inclusion: {namespaces: [a]}}"),
        config("{mode: ON_WITH_EXCLUSION, exclusion: {services: [reviews]}}"),
        config("{mode: ON_WITH_EXCLUSION, exclusion: {namespaces: [\"*\"]}}"),
        config("{mode: ON_WITH_EXCLUSION, exclusion: {}}"),
        config("{mode: ON, enforcementMode: PERMISSIVE, enforcement_mode: PERMISSIVE}"),
        config("{mode: ON}").replace("default", "other"),
        config("{mode: ON}") + "---\n" + &config("{mode: OFF}"),
        role("services: [a]") + "---\n" + &role("services: [b]"),
        role("services: [a]").replace("ServiceRole", "ServiceRule"),
        role("services: [a]").replace("v1alpha1", "v1beta1"),
        role("services: [a]").replace("apiVersion: rbac.istio.io/v1alpha1\n", ""),
        role("services: [a]").replace("name: r,", ""),
        role("services: [a]").replace("name: r,", "name: a/b,"),
        role("services: [a]").replace("name: r,", "name: r, nmespace: x,"),
        role("services: [a]").replace("spec:", "specs:"),
        "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {}\n".to_owned(),
        "apiVersion: apps/v1\nkind: Deployment\n".to_owned(),
        "kind: [a]\n".to_owned(),
        "- a\n".to_owned(),
        "a: [b\n".to_owned(),
    ];
    let told: String = mistakes.iter().map(|text| format!("{}\n", errors(text))).collect();
    insta::assert_snapshot!(told);
}

#[test]
fn all_mistakes_of_all_files_are_told_at_once_with_a_caret() {
    let files = [
        SourceFile::new("roles.yaml", role("{servces: [a], notPath: [/x], ports: [70000]}") + "---\n" + &role("{}")),
        SourceFile::new("broken.yaml", "kind: [\n"),
        SourceFile::new("bindings.yaml", subject("{name: [a], properties: {source.namspace: b}}")),
    ];
    let errors = Policy::from_files(&files, &Settings::default()).unwrap_err();
    insta::assert_snapshot!(render_all(&errors, Style::Plain));
}

#[test]
fn a_bad_document_is_refused_alone_where_the_caller_wants_that() {
    let nameless = subject("{user: \"*\"}").replace("name: r", "name: \"\"");
    let good = subject("{user: \"*\"}").replace("{name: b", "{name: c");
    let text = [config("{mode: ON}"), role("services: [\"*\"]"), nameless, good].join("---\n");
    let (policy, errors) = Policy::tolerant(&[SourceFile::new("p.yaml", text)], &Settings::default());
    assert_eq!(errors.len(), 1, "{errors}");
    let compiled = Place::new("n", "a", "v1").compile(&policy);
    assert!(Call::http("-", "GET", "/").with(|request| compiled.decide(request)).is_allowed());
}

#[test]
fn where_a_configuration_may_be_lost_rbac_is_on() {
    let on = config("{mode: ON}");
    for text in [
        config("{mode: ONN}"),
        on.replace("default", "x"),
        "a: [\n".to_owned(),
        on.replace("ClusterRbacConfig", "ClusterRbacConfg"),
        on.replace("v1alpha1", "v1"),
        on.replace("kind: ClusterRbacConfig\n", ""),
        "kind: List\nitems: {a: b}\n".to_owned(),
        "kind: List\nitem: []\n".to_owned(),
        "- just a list\n".to_owned(),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {}\n".to_owned(),
    ] {
        let (policy, errors) = Policy::tolerant(&[SourceFile::new("p.yaml", text.as_str())], &Settings::default());
        assert!(!errors.is_empty());
        let bound = policy.for_workload(&Place::new("n", "a", "v1").workload());
        assert_eq!(bound.activation, Activation::On, "{text}");
    }
}
