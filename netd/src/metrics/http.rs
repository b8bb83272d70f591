//! Serving a page of metrics over TCP, to Prometheus or a person with a browser.
//!
//! # Limits
//!
//! [`MAX_CONNECTIONS`] at a time, each for [`CONNECTION_TIMEOUT`] at most: clients may be strangers. One
//! page is made at a time, so many clients ask the networks no more than one does.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

use cnet::control::METRICS_PATH;

use super::Format;

/// Clients served at a time; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 16;

/// How long one client is served: a scrape takes ten seconds at most by Prometheus' own default.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a request's line and headers together.
const MAX_HEADERS: usize = 16 * 1024;

/// How long to wait before accepting again when the process lacks descriptors.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(250);

/// Serves what `page` makes to each client that asks for [`METRICS_PATH`], for ever.
pub async fn serve<F, P>(listener: TcpListener, page: F) -> Infallible
where
    F: Fn(Format) -> P + Send + Sync + 'static,
    P: Future<Output = String> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let page = Arc::new(page);
    let one_at_a_time = Arc::new(Mutex::new(()));
    loop {
        // Never closed.
        let permit = Arc::clone(&room).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                wait_after(&error).await;
                continue;
            }
        };
        let (page, one_at_a_time) = (Arc::clone(&page), Arc::clone(&one_at_a_time));
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (page, one_at_a_time) = (Arc::clone(&page), Arc::clone(&one_at_a_time));
                async move {
                    let make = async |format| {
                        let _turn = one_at_a_time.lock().await;
                        page(format).await
                    };
                    Ok::<_, Infallible>(answer(&request, make).await)
                }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .max_buf_size(MAX_HEADERS)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, served).await {
                tracing::debug!(%error, "a client of the metrics failed");
            }
            drop(permit);
        });
    }
}

/// A client that is gone before it was accepted holds nothing up.
async fn wait_after(error: &io::Error) {
    if error.kind() != io::ErrorKind::ConnectionAborted {
        tracing::warn!(%error, "cannot accept a client of the metrics");
        sleep(ACCEPT_INTERVAL).await;
    }
}

async fn answer(
    request: &Request<Incoming>,
    make: impl AsyncFnOnce(Format) -> String,
) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != METRICS_PATH {
        return text(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if request.method() != Method::GET {
        let mut refused = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "metrics are asked for by GET\n",
        );
        let get = HeaderValue::from_static("GET");
        refused.headers_mut().insert(ALLOW, get);
        return refused;
    }
    let accept = request.headers().get(ACCEPT);
    let accept = accept.and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    let mut response = Response::new(Full::from(make(format).await));
    let content_type = HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_page_is_served_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let page = |format| async move { format!("{format:?}\n") };
        let server = tokio::spawn(serve(listener, page));
        let ask = async |request: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = ask("GET /metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
        assert!(answer.ends_with("Prometheus\n"), "{answer}");
        assert!(ask("GET /").await.starts_with("HTTP/1.1 404"));
        assert!(ask("POST /metrics").await.starts_with("HTTP/1.1 405"));
        server.abort();
    }
}
