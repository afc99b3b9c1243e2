//! `docs/configuration.md`, `docs/cli.md` and `deploy/config/schema.json`, generated from the setting table and clap.

use std::fmt::Write as _;

use heartbeat_sidecar::cli;
use heartbeat_sidecar::config::{HEADINGS, SETTINGS, Setting, schema};
use serde_json::Value;

use super::{check_file, check_generated};

#[test]
fn docs_configuration_is_up_to_date() {
    let mut text = String::new();
    for heading in HEADINGS {
        write!(text, "\n## {heading}\n\n| key, flag, variable | type | default | reload | meaning |\n").unwrap();
        text += "|---|---|---|---|---|\n";
        text.extend(SETTINGS.iter().filter(|setting| setting.heading() == heading).map(row));
    }
    let schema = schema();
    text += "\n## Routes and certificates\n\nThey exist in the file only. Examples: [several apps](install.md#several-apps), \
             [certificates](tls.md).\n\n| key | required | meaning |\n|---|---|---|\n";
    let list = |name: &str, list: &Value| {
        let required = |key: &str| list["required"].as_array().unwrap().iter().any(|it| it == key);
        let keys = list["properties"].as_object().unwrap().iter();
        let row = |(key, value): (&String, &Value)| {
            let required = if required(key) { "yes" } else { "no" };
            let table = || format!("Overrides the keys of `[{key}]` for this app");
            let meaning = value["description"].as_str().map_or_else(table, str::to_owned);
            format!("| `{key}` of `[[{name}]]` | {required} | {meaning} |\n")
        };
        keys.map(row).collect::<String>()
    };
    text += &list("route", &schema["properties"]["route"]["items"]);
    text += &list("tls.certificates", &schema["properties"]["tls"]["properties"]["certificates"]["items"]);
    check_generated("docs/configuration.md", &text);
}

fn row(setting: &Setting) -> String {
    let (flag, variable, default) = (setting.flag(), setting.variable(), setting.default_text());
    let default = if default.is_empty() { "none".to_owned() } else { format!("`{default}`") };
    let reload = if setting.is_reloadable() { "yes" } else { "no" };
    let values = setting.value_name.replace('|', "` `");
    format!(
        "| `{}`<br>`--{flag}`<br>`{variable}` | `{values}` | {default} | {reload} | {} |\n",
        setting.key, setting.help
    )
}

#[test]
fn docs_cli_is_up_to_date() {
    let mut text = String::new();
    for command in cli::definition().get_subcommands() {
        let name = command.get_name();
        // The flags of settings are in docs/configuration.md.
        let hidden = |arg: clap::Arg| {
            let hide = arg.get_help_heading().is_some();
            arg.hide(hide)
        };
        let command = command.clone().bin_name(format!("heartbeat-sidecar {name}"));
        let help = command.mut_args(hidden).term_width(0).render_help();
        write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.to_string().trim_end()).unwrap();
    }
    check_generated("docs/cli.md", &text);
}

#[test]
fn docs_schema_is_up_to_date() {
    check_file("deploy/config/schema.json", &format!("{:#}\n", schema()));
}
