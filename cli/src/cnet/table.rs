//! Tables of text, as `ps` and `docker ps` print them: columns as wide as their widest cell.

/// Lines of cells, the first of them the heading.
pub(super) fn table(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let padded = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}   "));
        let padded: String = padded.collect();
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let line = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let text = table(&[line("NAME", "PID"), line("a-long-name", "7"), line("b", "")]);
        assert_eq!(text, "NAME          PID\na-long-name   7\nb\n");
        assert_eq!(table(&[]), "");
    }
}
