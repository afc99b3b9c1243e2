//! One scrape response, merged from the texts of several recorders.

use std::collections::BTreeMap;

use metrics_exporter_prometheus::PrometheusHandle;

/// A scrape in progress. Its CPU time grows with the number of upstreams. Call [`Self::step`] until it returns `false`,
/// and yield in between if others need the thread.
pub struct Scrape {
    left: Vec<PrometheusHandle>,
    texts: Vec<String>,
}

impl Scrape {
    pub(super) fn new(left: Vec<PrometheusHandle>) -> Self {
        Self { texts: Vec::with_capacity(left.len()), left }
    }

    /// Renders the series of one more recorder; `false` if nothing was left.
    pub fn step(&mut self) -> bool {
        let next = self.left.pop();
        self.texts.extend(next.as_ref().map(PrometheusHandle::render));
        next.is_some()
    }

    /// Everything that was rendered, in Prometheus' text format 0.0.4.
    pub fn text(self) -> String {
        merge(&self.texts)
    }
}

/// Merges all texts: the lines of a family must be one group, headed by its HELP and TYPE ("Text format details" of
/// Prometheus' exposition formats).
fn merge(texts: &[String]) -> String {
    let mut families = BTreeMap::<_, Vec<_>>::new();
    // No line within a family is empty: line breaks in help texts and labels are escaped.
    for family in texts.iter().flat_map(|text| text.split_terminator("\n\n")) {
        let (head, samples) = behead(family);
        families.entry(head).or_default().push(samples);
    }
    let mut page = String::with_capacity(texts.iter().map(String::len).sum());
    for (head, samples) in families {
        for part in std::iter::once(head).chain(samples) {
            page.push_str(part);
            page.push('\n');
        }
        page.push('\n');
    }
    page
}

/// The comment lines of a family, and its samples.
fn behead(family: &str) -> (&str, &str) {
    let mut line_ends = family.match_indices('\n').map(|(at, _)| at);
    match line_ends.find(|&at| !family[at + 1..].starts_with('#')) {
        Some(at) => (&family[..at], &family[at + 1..]),
        None => (family, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::merge;

    #[test]
    fn each_family_is_one_group_below_one_header() {
        let texts = [
            "# HELP b Says b.\n# TYPE b counter\nb 1\n\n# TYPE c gauge\nc 7\n\n",
            "# HELP a Says a.\n# TYPE a gauge\na 1\na{x=\"y\"} 2\n\n# HELP b Says b.\n# TYPE b counter\nb{u=\"1\"} 2\nb{u=\"2\"} 3\n\n",
            "",
        ];
        let merged = merge(&texts.map(str::to_owned));
        let expected = "# HELP a Says a.\n# TYPE a gauge\na 1\na{x=\"y\"} 2\n\n\
                        # HELP b Says b.\n# TYPE b counter\nb 1\nb{u=\"1\"} 2\nb{u=\"2\"} 3\n\n\
                        # TYPE c gauge\nc 7\n\n";
        assert_eq!(merged, expected);
    }
}
