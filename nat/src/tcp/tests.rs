//! Tests of the TCP engine as a whole, on the bench of [`super::testing`].

mod acknowledge;
mod ends;
mod handshake;
mod hostile;
mod limits;
mod loss;
mod orphans;
mod receive;
mod states;
mod transmit;
