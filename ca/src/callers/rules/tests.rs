use proptest::prelude::*;

use super::*;

fn rule(matches: &[(&str, &str)], identity: &str, namespaces: &[&str]) -> RuleConfig {
    RuleConfig {
        r#match: matches.iter().map(|(name, pattern)| ((*name).into(), (*pattern).into())).collect(),
        identity: identity.into(),
        namespaces: namespaces.iter().map(|name| (*name).into()).collect(),
    }
}

fn identify(rules: &[RuleConfig], values: &[(&str, &str)]) -> Result<String, RuleError> {
    let rules = Rules::new(rules, "east").unwrap();
    let of = |name: &str| values.iter().filter(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned()).collect();
    rules.identify(&"td".parse().unwrap(), &of).map(|id| id.to_string())
}

#[test]
fn patterns_match_whole_texts() {
    let check = |pattern: &str, text: &str, matches: bool| {
        assert_eq!(Pattern(pattern.into()).matches(text), matches, "{pattern:?} {text:?}");
    };
    for (pattern, good, bad) in [
        ("main", "main", "main2"),
        ("main", "main", ""),
        ("", "", "x"),
        ("*", "anything/at all", ""),
        ("refs/heads/*", "refs/heads/", "refs/tags/x"),
        ("*.example", "vm.example", "vm.example.com"),
        ("a*b*c", "a-b-b-c", "a-c-b"),
        ("ab*ba", "abba", "aba"),
        ("*x*", "x", "y"),
    ] {
        check(pattern, good, true);
        if pattern != "*" {
            check(pattern, bad, false);
        }
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = [
        rule(&[("repo", "acme/shop"), ("ref", "refs/heads/*")], "ns/ci/sa/{actor}", &[]),
        rule(&[("repo", "acme/*")], "ns/{team}/sa/deploy-{env}.x", &["a", "b"]),
        rule(&[("host", "*.vm.example")], "node/east/{host}", &[]),
    ];
    let id = |values: &[(&str, &str)]| identify(&rules, values);
    assert_eq!(
        id(&[("repo", "acme/shop"), ("ref", "refs/heads/x"), ("actor", "ann")]).unwrap(),
        "spiffe://td/ns/ci/sa/ann"
    );
    assert_eq!(id(&[("repo", "acme/x"), ("team", "b"), ("env", "eu")]).unwrap(), "spiffe://td/ns/b/sa/deploy-eu.x");
    assert_eq!(id(&[("host", "a.vm.example")]).unwrap(), "spiffe://td/node/east/a.vm.example");
    assert_eq!(id(&[]), Err(RuleError::NoneMatches));
    assert_eq!(id(&[("repo", "evil/shop")]), Err(RuleError::NoneMatches));
    // The first matches and comes to nothing: the second is not tried.
    let half = [("repo", "acme/shop"), ("ref", "refs/heads/x"), ("team", "a"), ("env", "eu")];
    assert_eq!(id(&half), Err(RuleError::Missing("actor".into())));
    // Of several values, those that the rule asked for count, and there must be one.
    assert_eq!(id(&[("host", "x"), ("host", "a.vm.example")]).unwrap(), "spiffe://td/node/east/a.vm.example");
    assert_eq!(id(&[("host", "a.vm.example"), ("host", "b.vm.example")]), Err(RuleError::Several("host".into())));
}

#[test]
fn a_value_never_leaves_its_place() {
    let rules =
        [rule(&[("sub", "*")], "ns/{team}/sa/{sub}", &["shop"]), rule(&[("x", "*")], "ns/alcazar-system/sa/{x}", &[])];
    for sub in ["", ".", "..", "a/b", "../../node/east/x", "a b", "%2e", "ä", "a\0", "a?b", "a#b"] {
        let outcome = identify(&rules, &[("sub", sub), ("team", "shop")]);
        assert!(matches!(outcome, Err(RuleError::NotAnIdentity { .. })), "{sub:?}: {outcome:?}");
    }
    for team in ["Shop", "shop2", "kube-system", "sho", ""] {
        assert!(identify(&rules, &[("sub", "web"), ("team", team)]).is_err(), "{team:?}");
    }
    assert!(matches!(identify(&rules, &[("x", "alcazar-ca")]), Err(RuleError::Outside(_))));
    assert_eq!(identify(&rules, &[("sub", "web"), ("team", "shop")]).unwrap(), "spiffe://td/ns/shop/sa/web");
}

#[test]
fn rules_that_would_admit_anybody_are_refused() {
    let fault = |rule: RuleConfig| match Rules::new(&[rule], "east") {
        Err(RuleConfigError::Rule { number: 1, source }) => source,
        other => panic!("{other:?}"),
    };
    assert_eq!(Rules::new(&[], "east"), Err(RuleConfigError::None));
    assert_eq!(fault(rule(&[], "ns/a/sa/b", &[])), RuleFault::MatchesEverybody);
    let sub = &[("sub", "*")];
    assert_eq!(fault(rule(sub, "ns/{team}/sa/b", &[])), RuleFault::AnyNamespace);
    assert_eq!(fault(rule(sub, "ns/x{team}/sa/b", &[])), RuleFault::AnyNamespace);
    assert_eq!(fault(rule(sub, "ns/a/sa/b", &["a"])), RuleFault::NamespaceTwice);
    assert_eq!(fault(rule(sub, "node/west/{sub}", &[])), RuleFault::OtherCluster("east".into()));
    assert_eq!(fault(rule(sub, "node/{c}/{sub}", &[])), RuleFault::OtherCluster("east".into()));
    for shape in [
        "",
        "a",
        "ns/a",
        "ns/a/sa",
        "ns/a/sa/b/c",
        "{sub}",
        "{sub}/a/sa/b",
        "ns/a/{sub}/b",
        "node/east",
        "spiffe://td/ns/a/sa/b",
    ] {
        assert!(matches!(fault(rule(sub, shape, &[])), RuleFault::Shape(_)), "{shape:?}");
    }
    for braces in ["ns/a/sa/{", "ns/a/sa/}", "ns/a/sa/{}", "ns/a/sa/{a{b}}", "ns/a/sa/{a/b}", "ns/a/sa/x{a"] {
        assert!(matches!(fault(rule(sub, braces, &[])), RuleFault::Braces(_)), "{braces:?}");
    }
}

proptest! {
    /// Whatever the values are, an identity that comes out is where the rule may make it.
    #[test]
    fn no_values_make_an_identity_elsewhere(team in "\\PC{0,12}|shop|shop/sa/x", sub in "\\PC{0,12}|\\.\\.|[a-z/]{0,8}", extra in "\\PC{0,5}") {
        let rules = [rule(&[("sub", "*")], "ns/{team}/sa/p-{sub}", &["shop", "blog"])];
        if let Ok(id) = identify(&rules, &[("sub", &sub), ("team", &team), ("other", &extra)]) {
            prop_assert!(team == "shop" || team == "blog");
            prop_assert_eq!(id, format!("spiffe://td/ns/{team}/sa/p-{sub}"));
        }
    }

    #[test]
    fn a_pattern_without_stars_is_the_text(text in "\\PC{0,10}", other in "\\PC{0,10}") {
        prop_assume!(!text.contains('*'));
        prop_assert!(Pattern(text.clone()).matches(&text));
        prop_assert_eq!(Pattern(text.clone()).matches(&other), text == other);
    }
}
