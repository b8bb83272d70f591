//! What happens on a network, as it happens.

use std::time::Duration;

use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::client::{self, AskError, Connection};
use super::{ContainerReport, EVENTS_PATH, MAX_ANSWER};

/// How long the network's process may take to begin the stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// How much of that is known to have no end of a line in it.
    searched: usize,
    _connection: Connection,
}

impl Events {
    /// Subscribes at the socket `path`.
    pub(crate) async fn subscribe(path: &std::path::Path) -> Result<Events, AskError> {
        let (stream, peer) = client::connect(path).await?;
        let request = client::request("GET", EVENTS_PATH, Vec::new())?;
        let begin = async {
            let (response, connection) = client::exchange(stream, Vec::new(), request).await?;
            let (status, mut body) = (response.status().as_u16(), response.into_body());
            if status != 200 {
                let answer = client::collect(&mut body).await?;
                return Err(client::refused(status, &answer));
            }
            Ok(Events {
                body,
                line: Vec::new(),
                searched: 0,
                _connection: connection,
            })
        };
        let begun = timeout(STREAM_TIMEOUT, begin).await;
        begun.map_err(|_| AskError::Silent(peer))?
    }

    /// Waits for the next event; `None` once the network's process has ended. Nothing is lost if
    /// the wait is given up.
    ///
    /// # Errors
    ///
    /// [`AskError::Unreadable`] for what is no event of this version.
    pub async fn next(&mut self) -> Result<Option<Event>, AskError> {
        loop {
            let unsearched = &self.line[self.searched..];
            if let Some(end) = unsearched.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=self.searched + end).collect();
                self.searched = 0;
                let event = serde_json::from_slice(&line);
                return event
                    .map(Some)
                    .map_err(|e| AskError::Unreadable(e.to_string()));
            }
            self.searched = self.line.len();
            // One event tells of one container, and an answer of all.
            if self.line.len() > MAX_ANSWER {
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
