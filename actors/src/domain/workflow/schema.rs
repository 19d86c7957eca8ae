//! The inputs of a workflow as JSON Schema (2020-12), which is what `OpenAPI` 3.1 speaks: forms, typed clients and validators are made
//! from it.

use serde_json::{Map, Value, json};

use super::{
    Workflow,
    input::{Input, Kind, whole},
};

impl Workflow {
    /// The schema of an `inputs` object.
    #[must_use]
    pub fn schema(&self) -> Value {
        let inputs = self.inputs();
        let properties: Map<String, Value> =
            inputs.iter().map(|input| (input.name.clone(), self.property(input))).collect();
        let required: Vec<&str> =
            inputs.iter().filter(|input| input.required).map(|input| input.name.as_str()).collect();
        json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        })
    }

    fn property(&self, input: &Input) -> Value {
        let mut property = of_kind(input.kind);
        let mut add = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                property.insert(key.to_owned(), value);
            }
        };
        add("description", input.description.clone().map(Value::from));
        add("minimum", input.minimum.map(number));
        add("maximum", input.maximum.map(number));
        add("enum", (!input.choices.is_empty()).then(|| Value::from(input.choices.clone())));
        // Nothing is the default of what must be given or is drawn; of the rest, the graph's own value is.
        let own = || self.literal(&input.node, &input.field).filter(|value| input.accept(value).is_ok()).cloned();
        let drawn = input.kind == Kind::Seed && input.default.is_none();
        add("default", if input.required || drawn { None } else { input.default.clone().or_else(own) });
        Value::Object(property)
    }
}

fn of_kind(kind: Kind) -> Map<String, Value> {
    let schema = match kind {
        Kind::String => json!({"type": "string"}),
        Kind::Integer => json!({"type": "integer"}),
        Kind::Number => json!({"type": "number"}),
        Kind::Boolean => json!({"type": "boolean"}),
        Kind::Choice => json!({}),
        Kind::Seed => json!({"type": "integer", "minimum": 0, "maximum": u64::MAX}),
        // Text or object: a reference to a file. What forms there are is the business of whoever resolves it.
        file => json!({"type": ["string", "object"], "minLength": 1, "x-comfyd-file": file.as_str()}),
    };
    match schema {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}

/// 1.0 as 1: readers of a schema of whole numbers expect them whole.
fn number(value: f64) -> Value {
    match Value::from(value) {
        Value::Number(number) => Value::Number(whole(&number).unwrap_or(number)),
        other => other,
    }
}
