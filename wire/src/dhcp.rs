//! DHCP: clients' messages as a server reads them, and a server's answers.
//!
//! Whether and what is answered is the server's to say; here stand the formats alone. Messages are
//! held against their real length, and options are never read by recursion.

pub mod v4;
pub mod v6;
