//! Labels on command lines, of networks and of containers.

/// `KEY=VALUE`, or `KEY` with an empty value, as Docker has it.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key {
        "" => Err("its key is empty".to_owned()),
        key => Ok((key.to_owned(), value.to_owned())),
    }
}
