//! Whether a page's Content-Security-Policy lets it load a script from its own origin.

use http::header::{self, HeaderMap};

/// Whether every policy allows a script of the page's own origin (CSP Level 3 §6.7.1); `host` is the page's.
///
/// In doubt it does not: a blocked script does nothing, but causes an error in each user's console and a report to the
/// app's operator.
pub(super) fn allows_own_script(headers: &HeaderMap, host: Option<&str>) -> bool {
    headers
        .get_all(header::CONTENT_SECURITY_POLICY)
        .iter()
        .all(|value| value.to_str().is_ok_and(|value| value.split(',').all(|policy| allows(policy, host))))
}

fn allows(policy: &str, host: Option<&str>) -> bool {
    let directives = || policy.split(';').map(|directive| directive.split_ascii_whitespace());
    // The first directive of a name counts; without any of these three, scripts are not restricted.
    let sources = ["script-src-elem", "script-src", "default-src"]
        .into_iter()
        .find_map(|name| directives().find_map(|mut words| words.next()?.eq_ignore_ascii_case(name).then_some(words)));
    let Some(sources) = sources else { return true };
    let mut allowed = false;
    for source in sources {
        if source.eq_ignore_ascii_case("'strict-dynamic'") {
            // Then host sources and 'self' are ignored.
            return false;
        }
        let own_host = |host: &str| source.eq_ignore_ascii_case(host);
        allowed |= source == "*" || source.eq_ignore_ascii_case("'self'") || host.is_some_and(own_host);
    }
    allowed
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn allowed(policies: &[&'static str]) -> bool {
        let pairs = policies.iter().map(|policy| (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)));
        allows_own_script(&pairs.collect(), Some("app.example:8501"))
    }

    #[test]
    fn a_policy_with_the_own_origin_or_no_script_rule_allows_the_script() {
        for policy in [
            "script-src 'self'",
            "default-src 'none'; SCRIPT-SRC 'unsafe-eval' 'Self'",
            "script-src 'none'; script-src-elem https://cdn.example 'self'",
            "default-src *",
            "script-src app.example:8501",
            "frame-ancestors 'none'",
            "",
        ] {
            assert!(allowed(&[policy]), "{policy}");
        }
        assert!(allowed(&[]));
    }

    #[test]
    fn the_script_is_forbidden_unless_every_policy_allows_it() {
        for policy in [
            "script-src 'none'",
            "script-src",
            "default-src 'none'; img-src 'self'",
            "script-src 'self' 'nonce-abc' 'strict-dynamic'",
            "script-src https://cdn.example",
            "script-src 'none'; script-src 'self'",
            "script-src 'self', script-src 'none'",
        ] {
            assert!(!allowed(&[policy]), "{policy}");
        }
        assert!(!allowed(&["script-src 'self'", "default-src 'none'"]));
    }
}
