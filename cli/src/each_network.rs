//! Asking several networks at once: the failure of one that cannot start or does not
//! answer hides no other's answer.

use anyhow::Context;

use cnet::definition::{Directories, Store};
use cnet::network::{Network, NetworkError};

/// What came of it.
pub(crate) struct Answers<T> {
    /// Those of the networks that run, by the networks' names.
    pub(crate) given: Vec<T>,
    /// What is wrong with the others, naming each.
    pub(crate) failures: Vec<anyhow::Error>,
}

/// Asks all networks side by side; `ask` gives `None` for one that does not run.
///
/// # Errors
///
/// When it cannot be told which networks there are.
pub(crate) async fn each<T, F>(ask: impl Fn(Network) -> F) -> anyhow::Result<Answers<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<Option<T>, NetworkError>> + Send + 'static,
{
    let directories = Directories::of_this_user()?;
    let (mut asked, mut failures) = (Vec::new(), Vec::new());
    for definition in Store::open(directories.clone()).each()? {
        match definition {
            Ok(definition) => {
                let name = definition.name.clone();
                let network = Network::new(definition, directories.clone());
                asked.push((name, tokio::spawn(ask(network))));
            }
            Err(error) => failures.push(error.into()),
        }
    }
    let mut given = Vec::new();
    for (name, answer) in asked {
        let answer = answer.await.map_err(anyhow::Error::new);
        let answer = answer.and_then(|answer| Ok(answer?));
        match answer.with_context(|| format!("the network `{name}`")) {
            Ok(answer) => given.extend(answer),
            Err(error) => failures.push(error),
        }
    }
    Ok(Answers { given, failures })
}

/// As [`each`], of one network if `name` says so; its failure is an error then.
///
/// # Errors
///
/// As [`each`]; what is wrong with the one network.
pub(crate) async fn one_or_each<T, F>(
    name: Option<&str>,
    ask: impl Fn(Network) -> F,
) -> anyhow::Result<Answers<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<Option<T>, NetworkError>> + Send + 'static,
{
    let Some(name) = name else {
        return each(ask).await;
    };
    let answer = ask(Network::open(name)?).await?;
    Ok(Answers {
        given: answer.into_iter().collect(),
        failures: Vec::new(),
    })
}
