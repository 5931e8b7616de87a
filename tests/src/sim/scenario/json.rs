//! A scenario written as JSON is read as the TOML that it is but for its punctuation, line by line the same.

/// The same document as TOML: `scenario = { … }`, lines kept.
///
/// # Errors
/// Where it is no JSON: line and reason.
pub fn to_toml(text: &str) -> Result<String, (usize, String)> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| (error.line(), format!("no JSON: {error}")))?;
    if !value.is_object() {
        return Err((1, "no JSON object: a scenario is { \"name\": …, \"host\": [ … ] }".into()));
    }
    let mut toml = String::from("scenario = ");
    let mut in_string = false;
    let mut escaped = false;
    for letter in text.trim_end().chars() {
        match letter {
            // JSON's only escape that TOML lacks.
            '/' if escaped => {
                toml.pop();
                toml.push('/');
            }
            ':' if !in_string => toml.push('='),
            '"' if !escaped => {
                in_string = !in_string;
                toml.push('"');
            }
            other => toml.push(other),
        }
        escaped = in_string && letter == '\\' && !escaped;
    }
    Ok(toml)
}

#[cfg(test)]
mod tests {
    use super::to_toml;

    #[test]
    fn punctuation_changes_and_lines_do_not() {
        let toml = to_toml("{\n \"a\": \"x: \\\"y\\\" \\/\",\n \"b\": [1, {\"c\": true}]\n}\n");
        assert_eq!(toml.as_deref(), Ok("scenario = {\n \"a\"= \"x: \\\"y\\\" /\",\n \"b\"= [1, {\"c\"= true}]\n}"));
        assert_eq!(to_toml("[1]").map_err(|(line, _)| line), Err(1));
        assert_eq!(to_toml("{\n\n \"a\" 1}").map_err(|(line, _)| line), Err(3));
    }
}
