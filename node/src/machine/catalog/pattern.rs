//! Regular expressions of permissions and policies. Most run in time linear in the name; those with look-around or backreferences, as
//! RabbitMQ's users write them (`^(?!amq\.)`), backtrack, within a bounded number of steps. Used by the catalog and, for rights, by `edge`.

/// Bytes of a pattern.
const PATTERN_BYTES: usize = 4096;
/// Bytes of a compiled one.
const COMPILED_BYTES: usize = 1 << 20;
/// Steps of backtracking; a name that needs more does not match.
const STEPS: usize = 5_000;
/// Product of all counted repeats (`{n}`) of a pattern that backtracks: they may be nested, and what they repeat may be empty and never
/// count as a step.
const REPEATS: u64 = 1000;

fn repeats(text: &str) -> u64 {
    let counts = text.split('{').skip(1).filter_map(|rest| {
        let inside = rest.split('}').next()?;
        let is_count = !inside.is_empty() && inside.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b' ');
        let highest = |n: &str| n.trim().parse::<u64>().unwrap_or(if n.trim().is_empty() { 0 } else { u64::MAX });
        is_count.then(|| inside.split(',').map(highest).max().unwrap_or(0).max(1))
    });
    counts.fold(1, u64::saturating_mul)
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern(Engine);

#[derive(Clone, Debug)]
enum Engine {
    Linear(regex::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

impl Pattern {
    /// The error says what is wrong with it. Which patterns compile may change with versions: nothing that replicas must agree on may
    /// depend on it, but what a pattern that compiled matches.
    pub fn compile(text: &str) -> Result<Pattern, String> {
        if text.len() > PATTERN_BYTES {
            return Err(format!("longer than {PATTERN_BYTES} bytes"));
        }
        match regex::RegexBuilder::new(text).size_limit(COMPILED_BYTES).build() {
            Ok(linear) => Ok(Pattern(Engine::Linear(linear))),
            // It may be one that only backtracking can do.
            Err(regex::Error::Syntax(_)) => Pattern::backtracking(text),
            Err(error) => Err(error.to_string()),
        }
    }

    fn backtracking(text: &str) -> Result<Pattern, String> {
        if repeats(text) > REPEATS {
            return Err(format!("counted repeats of more than {REPEATS} in all"));
        }
        let built = fancy_regex::RegexBuilder::new(text).backtrack_limit(STEPS).delegate_size_limit(COMPILED_BYTES).build();
        built.map(|regex| Pattern(Engine::Backtracking(Box::new(regex)))).map_err(|error| error.to_string())
    }

    /// Whether it occurs in `name`: anywhere, unless it is anchored.
    pub fn matches(&self, name: &str) -> bool {
        match &self.0 {
            Engine::Linear(regex) => regex.is_match(name),
            Engine::Backtracking(regex) => regex.is_match(name).unwrap_or(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::compile(pattern).unwrap().matches(name)
    }

    #[test]
    fn patterns_match_anywhere_unless_anchored() {
        assert!(matches("orders", "eu.orders.new") && !matches("^orders", "eu.orders"));
        assert!(matches("^(a|b)$", "a") && matches("", "anything"));
    }

    #[test]
    fn look_around_works_as_in_rabbitmqs_own_examples() {
        assert!(!matches(r"^(?!amq\.).*", "amq.gen-1") && matches(r"^(?!amq\.).*", "orders"));
    }

    #[test]
    fn only_what_needs_it_backtracks() {
        let is_linear = |pattern: &str| matches!(Pattern::compile(pattern).unwrap().0, Engine::Linear(_));
        assert!(is_linear("^(a|a)*b$") && is_linear(r"^amq\.gen-.*|x{3}$"));
        assert!(!is_linear("^(?!amq)") && !is_linear(r"(a)\1"));
        assert!(matches("^(a|a)*$", &"a".repeat(100_000)), "no number of steps bounds it");
    }

    #[test]
    fn broken_and_huge_patterns_are_errors_and_endless_ones_match_nothing() {
        assert!(Pattern::compile("(").is_err());
        assert!(Pattern::compile(&"a".repeat(PATTERN_BYTES + 1)).unwrap_err().contains("4096 bytes"));
        assert!(!matches(r"^(a|a)*(?=b)c$", &"a".repeat(200)));
        let endless = ["(?:(?=)(?=)){99999999999999}", "(?:(?:(?=)){100}){,100}", "(?:(?=)){99999999999999999999999}", "(?=a){1, 2000}"];
        for endless in endless.into_iter().chain([r"(?:\w{1000}){1000}"]) {
            assert!(Pattern::compile(endless).is_err(), "{endless}");
        }
        assert!(matches("^[0-9]{1,3}$", "123") && !matches("^[0-9]{2}$", "123") && matches(r"^x\{$", "x{"));
    }
}
