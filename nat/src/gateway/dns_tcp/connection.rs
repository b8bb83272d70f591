//! One connection: its socket, the query that is coming in, and the answers that go out.

use cnet_wire::DropReason;
use cnet_wire::dns;
use cnet_wire::headers::Link;
use cnet_wire::time::Instant;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::{ANSWER_WAIT, Ends, IDLE, MAX_BACKLOG, MAX_PIPELINE};
use crate::gateway::counters::DnsTcpCounters;
use crate::gateway::dns::PORT;
use crate::gateway::queries::{ConnectionId, Queries, WayBack};
use crate::host::HostSockets;

/// Bytes of queries that a socket buffers.
pub(super) const RECEIVE_LEN: usize = 1024;
/// Bytes of answers that a socket buffers.
pub(super) const SEND_LEN: usize = 4096;

pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) link: Link,
    pub(super) ends: Ends,
    /// When it is to be looked at next.
    pub(super) timeout: Instant,
    /// The one socket.
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// What has come of the next query, length prefix included.
    partial: Vec<u8>,
    /// Answers with their length prefixes; sent up to `sent`.
    answers: Vec<u8>,
    sent: usize,
    /// Queries without an answer yet.
    outstanding: u32,
    /// The last sign of life: bytes in, bytes out, or an answer for it.
    active: Instant,
    /// We have sent a FIN, or decided to.
    closing: bool,
}

impl Connection {
    /// Waits for the SYN of a connection between these ends.
    pub(super) fn listen(
        id: ConnectionId,
        link: Link,
        ends: Ends,
        now: Instant,
    ) -> Result<Connection, DropReason> {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(RECEIVE_LEN), buffer(SEND_LEN));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        // Fails for port 0 and open sockets only.
        socket.listen(PORT).map_err(|_| DropReason::NotServed)?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Connection {
            id,
            link,
            ends,
            timeout: now + IDLE,
            sockets,
            handle,
            partial: Vec::new(),
            answers: Vec::new(),
            sent: 0,
            outstanding: 0,
            active: now,
            closing: false,
        })
    }

    pub(super) fn state(&self) -> State {
        self.sockets.get::<Socket>(self.handle).state()
    }

    /// Its handshake is not done.
    pub(super) fn is_half_open(&self) -> bool {
        self.state() == State::SynReceived
    }

    /// Nothing asked, nothing to be told.
    pub(super) fn at_rest(&self) -> bool {
        self.partial.is_empty() && self.backlog() == 0 && self.outstanding == 0
    }

    pub(super) fn deadline(&self) -> Instant {
        let wait = if self.outstanding > 0 && self.backlog() == 0 {
            ANSWER_WAIT
        } else {
            IDLE
        };
        self.active + wait
    }

    /// Puts an answer on its way; false if it is too long.
    pub(super) fn queue_answer(&mut self, now: Instant, message: &[u8]) -> bool {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.active = now;
        dns::put_with_length(&mut self.answers, message)
    }

    /// Moves queries in and answers out, and ends it when its time has come.
    pub(super) fn serve(
        &mut self,
        now: Instant,
        queries: &mut Queries,
        counters: &mut DnsTcpCounters,
        hosts: &mut impl HostSockets,
    ) {
        if matches!(
            self.state(),
            State::Listen | State::Closed | State::TimeWait
        ) {
            return;
        }
        if self.read_queries(now, queries, counters, hosts).is_err() {
            self.socket().abort();
            counters.aborts += 1;
            return;
        }
        self.write_answers(now);
        let (expired, at_rest) = (now >= self.deadline(), self.at_rest());
        let answered = self.backlog() == 0 && self.outstanding == 0;
        let closing = self.closing;
        let socket = self.socket();
        // The client will ask no more: what it has begun to ask is void.
        let finished = socket.state() == State::CloseWait && socket.recv_queue() == 0;
        let quiet = expired && at_rest && socket.state() == State::Established;
        if !closing && answered && (finished || quiet) {
            socket.close();
            self.closing = true;
            self.active = now;
        } else if expired {
            socket.abort();
            counters.aborts += 1;
        }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut::<Socket>(self.handle)
    }

    fn backlog(&self) -> usize {
        self.answers.len() - self.sent
    }

    fn write_answers(&mut self, now: Instant) {
        if self.backlog() == 0 {
            return;
        }
        let socket = self.sockets.get_mut::<Socket>(self.handle);
        if !socket.can_send() {
            return;
        }
        let sent = socket.send_slice(&self.answers[self.sent..]).unwrap_or(0);
        self.sent += sent;
        if sent > 0 {
            self.active = now;
        }
        if self.backlog() == 0 {
            self.answers = Vec::new();
            self.sent = 0;
        }
    }

    /// Reads as many queries as may be outstanding. An error is a message that is none.
    fn read_queries(
        &mut self,
        now: Instant,
        queries: &mut Queries,
        counters: &mut DnsTcpCounters,
        hosts: &mut impl HostSockets,
    ) -> Result<(), DropReason> {
        while self.outstanding < MAX_PIPELINE && self.backlog() < MAX_BACKLOG {
            let missing = dns::missing(&self.partial);
            let partial = &mut self.partial;
            let socket = self.sockets.get_mut::<Socket>(self.handle);
            if !socket.can_recv() {
                return Ok(());
            }
            let taken = socket.recv(|data| {
                let n = missing.min(data.len());
                partial.extend(&data[..n]);
                (n, n)
            });
            // The other side's end of stream, or nothing yet.
            if !matches!(taken, Ok(1..)) {
                return Ok(());
            }
            self.active = now;
            if let Some(body) = dns::whole(&self.partial) {
                if !dns::is_query(body) {
                    return Err(DropReason::BadDns);
                }
                let back = WayBack::Tcp(self.id);
                let (client, port) = (self.ends.client, self.link.port);
                queries.ask(client, port, body.to_vec(), back, hosts)?;
                counters.queries += 1;
                self.outstanding += 1;
                self.partial = Vec::new();
            }
        }
        Ok(())
    }
}
