//! "Did you mean ...?"

/// A suggestion for `found`, from the names that were possible there.
///
/// The nearest name, if one is near; else all of them, if they are few.
pub fn suggest<'a>(found: &str, possible: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let possible: Vec<&str> = possible.into_iter().collect();
    if let Some(nearest) = nearest(found, &possible) {
        return Some(format!("did you mean `{nearest}`?"));
    }
    match possible.as_slice() {
        [] => None,
        [only] => Some(format!("only `{only}` is possible here")),
        [first @ .., last] if possible.len() <= 12 => {
            let first: Vec<String> = first.iter().map(|name| format!("`{name}`")).collect();
            Some(format!("possible here: {} or `{last}`", first.join(", ")))
        }
        _ => None,
    }
}

fn nearest<'a>(found: &str, possible: &[&'a str]) -> Option<&'a str> {
    // Nobody mistypes a name into something this long, and the comparison is quadratic.
    if found.len() > 64 {
        return None;
    }
    let plain = simplify(found);
    let scored = possible.iter().map(|name| (strsim::damerau_levenshtein(&plain, &simplify(name)), *name));
    let (distance, name) = scored.min_by_key(|(distance, _)| *distance)?;
    // A third of the letters may be wrong: more is another word.
    (distance <= (plain.chars().count().max(3) / 3).min(4)).then_some(name)
}

/// `not_paths`, `not-paths` and `NotPaths` are the same mistake.
fn simplify(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        let fields = ["paths", "notPaths", "methods", "hosts"];
        for (found, expected) in [
            ("notPath", Some("did you mean `notPaths`?")),
            ("not_paths", Some("did you mean `notPaths`?")),
            ("Methods", Some("did you mean `methods`?")),
            ("hots", Some("did you mean `hosts`?")),
            ("colour", Some("possible here: `paths`, `notPaths`, `methods` or `hosts`")),
        ] {
            assert_eq!(suggest(found, fields).as_deref(), expected, "{found}");
        }
        assert_eq!(suggest("x", []), None);
        assert_eq!(suggest(&"paths".repeat(100), ["paths"]).as_deref(), Some("only `paths` is possible here"));
    }
}
