//! Errors as the specification has them.

use serde::Serialize;

use crate::plugin::{NoNetwork, PortError};
use cnet::control::Kind;
use cnet::control::client::AskError;
use cnet::network::NetworkError;

/// The code of an error (specification, section 5). From 100 on they are the plug-in's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Code {
    /// A version that is not spoken.
    Version = 1,
    /// A field that is not supported; the message names it.
    Field = 2,
    /// The container does not exist.
    Container = 3,
    /// A variable of the environment is missing or wrong.
    Environment = 4,
    /// Something could not be read or written.
    Io = 5,
    /// Something is no JSON.
    Decode = 6,
    /// The configuration makes no sense.
    Configuration = 7,
    /// The same may work a little later.
    Again = 11,
    /// Containers cannot be added at all.
    Unavailable = 50,
    /// The network refuses.
    Refused = 100,
    /// CHECK: the attachment is not there.
    Missing = 101,
    /// CHECK: the attachment is not as it was told.
    Differs = 102,
}

/// An error that the engine is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Error {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) details: String,
}

/// The same in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl Error {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Error {
        Error {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    pub(super) fn details(mut self, details: impl ToString) -> Error {
        self.details = details.to_string();
        self
    }

    /// The error in the version that the engine speaks.
    pub(super) fn to_json(&self, version: &str) -> String {
        let told = Told {
            cni_version: version,
            code: self.code as u32,
            msg: &self.message,
            details: &self.details,
        };
        // A struct of strings has no way to fail.
        serde_json::to_string(&told).unwrap_or_default()
    }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Error {
        let code = match &error {
            NetworkError::Refused(refusal) => match refusal.kind {
                Kind::Ending => Code::Again,
                Kind::Internal => Code::Io,
                _ => Code::Refused,
            },
            NetworkError::Ask(AskError::Silent(_) | AskError::Lost(_)) => Code::Again,
            NetworkError::Target(_) => Code::Container,
            NetworkError::Store(_) => Code::Configuration,
            _ => Code::Io,
        };
        Error::new(code, error.to_string())
    }
}

impl From<NoNetwork> for Error {
    fn from(error: NoNetwork) -> Error {
        match error {
            NoNetwork::Failed(error) => error.into(),
            NoNetwork::Differs { .. } => Error::new(Code::Configuration, error.to_string()),
        }
    }
}

impl From<PortError> for Error {
    fn from(error: PortError) -> Error {
        let code = match error {
            PortError::Protocol(_) => Code::Field,
            _ => Code::Configuration,
        };
        Error::new(code, format!("portMappings: {error}"))
    }
}
