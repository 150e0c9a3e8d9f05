//! A report as one self-contained HTML file.

use super::BootReport;

/// The page, with a placeholder for the report's JSON.
const PAGE: &str = include_str!("page.html");

/// The placeholder.
const PLACE: &str = "/*REPORT*/null";

pub(super) fn page(report: &BootReport) -> String {
    // The name of a path must not end the script element.
    let json = serde_json::json!(report)
        .to_string()
        .replace('<', "\\u003c");
    PAGE.replacen(PLACE, &json, 1)
}

#[cfg(test)]
mod tests {
    use super::super::{PathReads, Totals};
    use super::*;

    #[test]
    fn names_cannot_inject_markup() {
        let report = BootReport {
            format: String::new(),
            version: String::new(),
            events: Vec::new(),
            totals: Totals::default(),
            paths: vec![PathReads {
                name: "</script><b>".to_owned(),
                ..PathReads::default()
            }],
        };
        let page = page(&report);
        assert!(page.contains("\\u003c/script>\\u003cb>"));
        assert!(!page.contains(PLACE));
        assert_eq!(
            page.matches("</script>").count(),
            PAGE.matches("</script>").count()
        );
    }

    #[test]
    fn the_page_refers_to_no_other_file() {
        for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
            let found = PAGE.replace("http://www.w3.org/2000/svg", "");
            assert!(!found.contains(outside), "{outside}");
        }
    }
}
