//! Documents in every shape that Istio 1.4 users wrote them in.

use alcazar_policy::{Activation, WorkloadPolicy};

use crate::support::{Call, Place, policy};

fn bound(text: &str, place: &Place) -> WorkloadPolicy {
    policy(text).for_workload(&place.workload())
}

fn is_allowed(text: &str, place: &Place, call: &Call) -> bool {
    let compiled = place.compile(&policy(text));
    call.with(|request| compiled.decide(request)).is_allowed()
}

#[test]
fn no_configuration_means_off_and_the_cluster_wide_one_wins() {
    let config = |kind: &str, mode: &str| {
        format!(
            "---\napiVersion: rbac.istio.io/v1alpha1\nkind: {kind}\nmetadata:\n  name: default\nspec:\n  mode: {mode}\n"
        )
    };
    let place = Place::new("default", "a", "v1");
    assert_eq!(bound("# nothing\n", &place), WorkloadPolicy::off());
    assert_eq!(bound(&config("RbacConfig", "'ON'"), &place), WorkloadPolicy::deny_all());
    let both = config("RbacConfig", "OFF") + &config("ClusterRbacConfig", "ON");
    assert_eq!(bound(&both, &place).activation, Activation::On);
    let both = config("ClusterRbacConfig", "OFF") + &config("RbacConfig", "ON");
    assert_eq!(bound(&both, &place).activation, Activation::Off);
}

#[test]
fn a_permissive_configuration_lets_pass_and_tells() {
    let text = r#"
apiVersion: "rbac.istio.io/v1alpha1"
kind: ClusterRbacConfig
metadata:
  name: default
spec:
  mode: 'ON_WITH_INCLUSION'
  inclusion:
    namespaces: ["default"]
  enforcement_mode: PERMISSIVE
"#;
    let place = Place::new("default", "a", "v1");
    let compiled = place.compile(&policy(text));
    let told = Call::http("x/y", "GET", "/").with(|request| {
        let decision = compiled.decide(request);
        assert!(decision.is_allowed() && !decision.shadow().unwrap().is_allowed());
        compiled.explain(request).to_string()
    });
    assert_eq!(
        told,
        "allowed: RBAC is permissive for this workload; in shadow: would be denied, no role covers this workload"
    );
    assert_eq!(bound(text, &Place::new("other", "a", "v1")).activation, Activation::Off);
}

/// As an API server gives it back: a list, with everything it adds.
const EXPORTED: &str = r#"
apiVersion: v1
kind: List
metadata:
  resourceVersion: ""
  selfLink: ""
items:
- apiVersion: rbac.istio.io/v1alpha1
  kind: ClusterRbacConfig
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"rbac.istio.io/v1alpha1","kind":"ClusterRbacConfig"}
    creationTimestamp: "2019-12-02T10:00:00Z"
    generation: 1
    name: default
    resourceVersion: "12345"
    selfLink: /apis/rbac.istio.io/v1alpha1/clusterrbacconfigs/default
    uid: 0b3dbe4e-0000-4000-8000-000000000000
  spec:
    mode: "ON"
- apiVersion: rbac.istio.io/v1alpha1
  kind: ServiceRole
  metadata:
    creationTimestamp: null
    name: tester
    namespace: default
  spec:
    rules:
    - methods: ['*']
      paths: ['*/reviews']
      services: [test-*]
      not_methods: []
  status: {}
"#;

#[test]
fn an_exported_list_is_read_and_what_is_wrong_in_it_is_told() {
    let text = EXPORTED.replace("      not_methods: []\n", "");
    let mut place = Place::new("default", "test-one", "v1");
    assert_eq!(bound(&text, &place).rule_count(), 1);
    place.services = vec!["other.default.svc.cluster.local".to_owned()];
    assert_eq!(bound(&text, &place), WorkloadPolicy::deny_all());
    let file = alcazar_yaml::SourceFile::new("list.yaml", EXPORTED);
    let errors = alcazar_policy::Policy::from_files(&[file], &Default::default()).unwrap_err();
    let told: Vec<String> = errors.iter().map(|error| error.message().to_owned()).collect();
    assert_eq!(
        told,
        ["a rule cannot have both `methods` and `notMethods`", "`notMethods` is empty: it would match nothing"]
    );
}

/// A viewer for every service of a namespace, given to other namespaces by label of the service.
const VIEWER: &str = r#"
apiVersion: "rbac.istio.io/v1alpha1"
kind: ClusterRbacConfig
metadata: {name: default}
spec: {mode: 'ON'}
---
apiVersion: "rbac.istio.io/v1alpha1"
kind: ServiceRole
metadata:
  name: service-viewer
  namespace: default
spec:
  rules:
  - services: ["*"]
    methods: ["GET"]
    constraints:
    - key: "destination.labels[app]"
      values: ["productpage", "details", "reviews", "ratings"]
---
apiVersion: "rbac.istio.io/v1alpha1"
kind: ServiceRoleBinding
metadata:
  name: bind-service-viewer
  namespace: default
spec:
  subjects:
  - properties:
      source.namespace: "istio-system"
  - properties:
      source.namespace: "default"
  roleRef:
    kind: ServiceRole
    name: "service-viewer"
"#;

#[test]
fn a_namespace_wide_viewer_works_as_in_the_manual() {
    let (ratings, mongo) = (Place::new("default", "ratings", "v1"), Place::new("default", "mongodb", "v1"));
    let get = |source| Call::http(source, "GET", "/ratings/0");
    assert!(is_allowed(VIEWER, &ratings, &get("default/productpage")));
    assert!(is_allowed(VIEWER, &ratings, &get("istio-system/ingress")));
    assert!(!is_allowed(VIEWER, &ratings, &get("sleep/sleep")));
    assert!(!is_allowed(VIEWER, &ratings, &get("-")));
    assert!(!is_allowed(VIEWER, &ratings, &Call::http("default/x", "POST", "/ratings/0")));
    assert!(!is_allowed(VIEWER, &mongo, &get("default/productpage")));
    assert!(!is_allowed(VIEWER, &Place::new("elsewhere", "ratings", "v1"), &get("default/x")));
}

#[test]
fn a_service_answers_to_its_short_and_its_full_names() {
    for (services, expected) in [
        ("[reviews]", true),
        ("[reviews.shop]", true),
        ("[reviews.shop.svc]", true),
        ("[reviews.shop.svc.cluster.local]", true),
        ("[\"rev*\"]", true),
        ("[\"*.cluster.local\"]", true),
        ("[\"*\"]", true),
        ("[review]", false),
        ("[reviews.other]", false),
        ("[\"*.shop\"]", false),
        ("[\"*views\"]", false),
        ("[reviews.shop.svc.cluster]", false),
    ] {
        let text = VIEWER.replace("[\"*\"]", services).replace("namespace: default\n", "namespace: shop\n");
        let text = text
            .replace("\n    constraints:\n    - key: \"destination.labels[app]\"", "")
            .replace("\n      values: [\"productpage\", \"details\", \"reviews\", \"ratings\"]", "");
        let got = is_allowed(&text, &Place::new("shop", "reviews", "v1"), &Call::http("default/x", "GET", "/"));
        assert_eq!(got, expected, "{services}");
    }
}

#[test]
fn a_principal_of_one_trust_domain_is_one_of_its_aliases() {
    let subjects = "  subjects:\n  - user: old.local/ns/default/sa/x\n  - user: \"old.local/ns/b/*\"\n";
    let (start, rest) = VIEWER.split_once("  subjects:\n").unwrap();
    let text = format!("{start}{subjects}{}", &rest[rest.find("  roleRef").unwrap()..]);
    let mut place = Place::new("default", "ratings", "v1");
    let by = |id: &str| {
        let mut call = Call::http("-", "GET", "/");
        call.source = Some(id.parse().unwrap());
        call
    };
    let ours = by("spiffe://cluster.local/ns/default/sa/x");
    assert!(!is_allowed(&text, &place, &ours));
    place.aliases = vec!["old.local".to_owned(), "older.local".to_owned()];
    assert!(is_allowed(&text, &place, &ours));
    assert!(is_allowed(&text, &place, &by("spiffe://older.local/ns/b/sa/any")));
    assert!(is_allowed(&text, &place, &by("spiffe://old.local/ns/default/sa/x")));
    assert!(!is_allowed(&text, &place, &by("spiffe://foreign.example/ns/default/sa/x")));
}
