//! Whatever a client sends as a path or a host is refused, or becomes something that stays as it is.
#![no_main]

use alcazar_policy::{EncodedSlash, Host, NormalizedPath};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for slash in [EncodedSlash::Refuse, EncodedSlash::Decode] {
        let Ok(path) = NormalizedPath::parse(text, slash) else { continue };
        assert!(path.as_str() == "*" || path.as_str().starts_with('/'));
        assert!(!path.as_str().contains("//") && !path.as_str().contains('\\'));
        assert!(!path.as_str().split('/').any(|segment| segment == "." || segment == ".."));
        let forwarded = path.forward();
        let again = NormalizedPath::parse(&forwarded, EncodedSlash::Refuse);
        assert_eq!(again.as_ref().map(NormalizedPath::as_str), Ok(path.as_str()));
    }
    if let Ok(host) = Host::normalize(text) {
        assert_eq!(Host::normalize(host.as_str()), Ok(host.clone()));
        assert!(!host.as_str().bytes().any(|byte| byte.is_ascii_uppercase()));
    }
});
