//! The JSON Schema of the configuration file, for editors and pipelines; `check` validates more than a schema can.

use serde_json::{Map, Value, json};

use super::routes::{OWN_FIELDS, ROUTES};
use super::setting::Setting;
use super::settings::SETTINGS;
use super::tls::CERTIFICATES;
use super::values::TomlType;

/// As humantime parses it: numbers with units.
const DURATION: &str = r"^[0-9]+ ?[A-Za-z]+( ?[0-9]+ ?[A-Za-z]+)*$";

/// The schema of the whole file, in draft 7, which TOML editors support.
pub fn schema() -> Value {
    let mut properties = Map::new();
    for setting in SETTINGS {
        let place = if setting.table().is_empty() {
            &mut properties
        } else {
            let table = properties.entry(setting.table()).or_insert_with(|| closed(Map::new()));
            inner(table)
        };
        place.insert(setting.name().to_owned(), of_setting(setting));
    }
    properties.insert(ROUTES.key.to_owned(), json!({ "type": "array", "items": route() }));
    inner(&mut properties["tls"]).insert("certificates".to_owned(), json!({ "type": "array", "items": certificate() }));
    let mut schema = closed(properties);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("heartbeat-sidecar");
    // Either the one app or several.
    schema["not"] = json!({ "required": ["route", "upstream"] });
    schema
}

/// A table that accepts these keys and no others.
fn closed(properties: Map<String, Value>) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn inner(table: &mut Value) -> &mut Map<String, Value> {
    table["properties"].as_object_mut().expect("made as an object")
}

/// A route: its own keys, and those that it shares with the top level.
fn route() -> Value {
    let text =
        |description: &str, pattern: &str| json!({ "type": "string", "description": description, "pattern": pattern });
    let own = [
        text("Name of the app in metrics and logs; unique", r"^[A-Za-z0-9_.-]{1,63}$"),
        text(
            "Host that it serves: HOST or *.HOST; without it, any host",
            r"^(\*\.)?[A-Za-z0-9_.-]+$|^\[[0-9A-Fa-f:.]+\]$",
        ),
        text("Path prefix that it serves, in whole segments; without it, every path", "^/[^?#*\\\\ ]*$"),
    ];
    let (fields, shared) = ROUTES.fields.split_at(OWN_FIELDS);
    let mut properties: Map<_, _> = fields.iter().map(|field| (*field).to_owned()).zip(own).collect();
    for setting in SETTINGS.iter().filter(|setting| shared.contains(&setting.key)) {
        // No default, because routes inherit the top level's value.
        let mut value = of_setting(setting);
        value.as_object_mut().expect("made as an object").remove("default");
        let place = if setting.table().is_empty() {
            &mut properties
        } else {
            inner(properties.entry(setting.table()).or_insert_with(|| closed(Map::new())))
        };
        place.insert(setting.name().to_owned(), value);
    }
    let mut route = closed(properties);
    route["required"] = json!(["name", "upstream"]);
    route
}

/// A further certificate: the same files as the first one.
fn certificate() -> Value {
    let fields = CERTIFICATES.fields;
    let of_first = |field: &&str| SETTINGS.iter().find(|setting| setting.key == format!("tls.{field}"));
    let description =
        |field| json!({ "type": "string", "minLength": 1, "description": of_first(field).map(|it| it.help) });
    let mut certificate = closed(fields.iter().map(|field| ((*field).to_owned(), description(field))).collect());
    certificate["required"] = json!(fields);
    certificate
}

fn of_setting(setting: &Setting) -> Value {
    let default = setting.default_text();
    let (kind, default) = match setting.toml {
        TomlType::String => ("string", json!(default)),
        TomlType::Boolean => ("boolean", json!(default == "true")),
        TomlType::Integer => ("integer", json!(default.parse::<u64>().expect("an integer by its type"))),
    };
    let mut schema = json!({ "type": kind, "description": setting.help, "default": default });
    let off = |pattern: &str| format!("^off$|{pattern}");
    let pattern = match (setting.toml, setting.value_name) {
        (TomlType::Boolean, _) => None,
        (TomlType::Integer, words) if words.contains('|') => {
            schema["enum"] = words.split('|').map(|word| json!(word.parse::<u64>().expect("a number"))).collect();
            None
        }
        (TomlType::Integer, _) => {
            schema["minimum"] = json!(0);
            None
        }
        (TomlType::String, "DURATION") => Some(DURATION.to_owned()),
        (TomlType::String, "DURATION|off") => Some(off(DURATION)),
        (TomlType::String, "IP:PORT") => Some(r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$".to_owned()),
        (TomlType::String, "ADDRESS") => Some("^([Hh][Tt][Tt][Pp][Ss]?://|unix:/).".to_owned()),
        (TomlType::String, words) if words.contains('|') => {
            schema["enum"] = words.split('|').map(|word| json!(word)).collect();
            None
        }
        (TomlType::String, _) => None,
    };
    if let Some(pattern) = pattern {
        schema["pattern"] = json!(pattern);
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_in_the_schema_at_its_place_in_the_file() {
        let schema = schema();
        for setting in SETTINGS {
            let table = if setting.table().is_empty() { &schema } else { &schema["properties"][setting.table()] };
            assert_eq!(table["properties"][setting.name()]["description"], setting.help, "{}", setting.key);
        }
        let route = &schema["properties"]["route"]["items"]["properties"];
        assert_eq!(route["heartbeat"]["properties"]["mode"]["enum"], json!(["auto", "answer", "forward"]));
        assert!(route["path"]["pattern"].is_string() && route["upstream"]["default"].is_null());
    }
}
