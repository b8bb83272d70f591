//! What happens on a network, as it happens.

use std::time::Duration;

use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::client::{self, AskError, Connection};
use super::{ContainerReport, EVENTS_PATH};

/// How long the network's process may take to begin the stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest line that is read, in bytes.
const MAX_LINE: usize = 1024 * 1024;

/// Something that happened on a network. One line of JSON each, such as
/// `{"event":"left","id":"…","name":"web","why":"it has ended"}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A container has joined.
    Joined {
        /// The container, as it was then.
        container: Box<ContainerReport>,
    },
    /// A container has left.
    Left {
        /// Its id.
        id: String,
        /// Its name on this network.
        name: String,
        /// Why, for people.
        why: String,
    },
    /// This client was slow, and events before the next one were dropped.
    Lost {
        /// How many.
        count: u64,
    },
}

/// The events of one network, from [`crate::Network::events`] on, until its process ends.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    /// What came of the next line.
    line: Vec<u8>,
    _connection: Connection,
}

impl Events {
    /// Subscribes at the socket `path`.
    pub(crate) async fn subscribe(path: &std::path::Path) -> Result<Events, AskError> {
        let (stream, peer) = client::connect(path).await?;
        let request = client::request("GET", EVENTS_PATH, Vec::new())?;
        let begun = timeout(
            STREAM_TIMEOUT,
            client::exchange(stream, Vec::new(), request),
        );
        let (response, connection) = begun.await.map_err(|_| AskError::Silent(peer))??;
        let (status, body) = (response.status().as_u16(), response.into_body());
        let mut events = Events {
            body,
            line: Vec::new(),
            _connection: connection,
        };
        if status == 200 {
            return Ok(events);
        }
        let answer = client::collect(&mut events.body).await?;
        Err(client::refused(status, &answer))
    }

    /// Waits for the next event; `None` once the network's process has ended. Nothing is lost if
    /// the wait is given up.
    ///
    /// # Errors
    ///
    /// [`AskError::Unreadable`] for what is no event of this version.
    pub async fn next(&mut self) -> Result<Option<Event>, AskError> {
        loop {
            if let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                let event = serde_json::from_slice(&line);
                return event
                    .map(Some)
                    .map_err(|e| AskError::Unreadable(e.to_string()));
            }
            if self.line.len() > MAX_LINE {
                return Err(AskError::Unreadable("a line without end".to_owned()));
            }
            match client::next_piece(&mut self.body).await {
                Some(Ok(piece)) => self.line.extend_from_slice(&piece),
                // The process was killed, which is an end as well.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_that_name_their_kind() {
        let left = Event::Left {
            id: "ab".to_owned(),
            name: "web".to_owned(),
            why: "it has ended".to_owned(),
        };
        let text = serde_json::to_string(&left).unwrap();
        let expected = r#"{"event":"left","id":"ab","name":"web","why":"it has ended"}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), left);
        let lost = serde_json::from_str(r#"{"event":"lost","count":3}"#);
        assert_eq!(lost.ok(), Some(Event::Lost { count: 3 }));
    }
}
