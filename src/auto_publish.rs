//! Ports that are published as the container listens on them: `auto`, less those that are excluded.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Publishes what the container listens on, as it begins and ends, each port at the same number of the
/// host's. As text, and in JSON, it is `auto`, and then, each behind a comma and a tilde, ports and ranges
/// that are left out: `auto,~22,~8000-8010`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AutoPublish {
    exclude: Vec<RangeInclusive<u16>>,
}

/// Why a text is no [`AutoPublish`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{0}` does not follow `auto`: that is ports or ranges to leave out, as in auto,~22,~8000-8010"
)]
pub struct AutoPublishError(String);

impl AutoPublish {
    /// All but the ports in `exclude`.
    pub fn except(exclude: impl IntoIterator<Item = RangeInclusive<u16>>) -> AutoPublish {
        AutoPublish {
            exclude: exclude.into_iter().collect(),
        }
    }

    /// Whether `port` is to be published when the container listens on it.
    pub fn has(&self, port: u16) -> bool {
        !self.exclude.iter().any(|range| range.contains(&port))
    }
}

impl FromStr for AutoPublish {
    type Err = AutoPublishError;

    fn from_str(text: &str) -> Result<AutoPublish, AutoPublishError> {
        let wrong = |part: &str| AutoPublishError(part.to_owned());
        let mut parts = text.split(',');
        if parts.next() != Some("auto") {
            return Err(wrong(text));
        }
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|&port: &u16| plain && port > 0)
        };
        let range = |part: &str| {
            let ports = part.strip_prefix('~')?;
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(first..=last)
        };
        let exclude = parts.map(|part| range(part).ok_or_else(|| wrong(part)));
        Ok(AutoPublish {
            exclude: exclude.collect::<Result<_, _>>()?,
        })
    }
}

impl fmt::Display for AutoPublish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auto")?;
        for range in &self.exclude {
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, ",~{first}")?,
                (first, last) => write!(f, ",~{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for AutoPublish {
    type Error = AutoPublishError;

    fn try_from(text: String) -> Result<AutoPublish, AutoPublishError> {
        text.parse()
    }
}

impl From<AutoPublish> for String {
    fn from(auto: AutoPublish) -> String {
        auto.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_read_and_written() {
        for text in ["auto", "auto,~22", "auto,~22,~8000-8010"] {
            assert_eq!(text.parse::<AutoPublish>().unwrap().to_string(), text);
        }
        let auto: AutoPublish = "auto,~22,~8000-8010".parse().unwrap();
        assert!(auto.has(80) && auto.has(8011) && !auto.has(22) && !auto.has(8005));
        for (text, wrong) in [
            ("", ""),
            ("automatic", "automatic"),
            ("auto,22", "22"),
            ("auto,", ""),
            ("auto,~0", "~0"),
            ("auto,~9-8", "~9-8"),
        ] {
            let error = AutoPublishError(wrong.to_owned());
            assert_eq!(text.parse::<AutoPublish>(), Err(error), "{text}");
        }
    }
}
