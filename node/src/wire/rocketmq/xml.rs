//! The XML documents of the protocol. Read strictly (ill-formed ones are refused, document types too: nothing expands), without
//! looking at namespaces; written with one text node per element, as the SDK's parser needs it. Used by `session::rocketmq`.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};

/// What every document of the service names.
const NAMESPACE: &str = "http://mq.aliyuncs.com/doc/v1/";
const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
/// Elements within elements: no document of the protocol needs more than three.
const DEPTH_MAX: usize = 8;
/// Elements of one document: the largest needs 17.
const ELEMENTS_MAX: usize = 256;
/// Attributes of one element: no document of the protocol needs more than two. Each is compared with those before it.
const ATTRIBUTES_MAX: usize = 16;

/// Not well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IllFormed;

/// A document of a root with elements that hold text alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flat {
    /// Name of the root, without a prefix.
    pub root: String,
    /// Names and texts of its elements, in order.
    pub elements: Vec<(String, String)>,
}

impl Flat {
    /// The text of the first element of that name.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.elements.iter_mut().find(|(known, _)| known == name).map(|(_, text)| std::mem::take(text))
    }
}

/// Whether XML can carry this text.
pub fn is_text(text: &str) -> bool {
    text.chars().all(is_char)
}

fn is_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// Reads a document; texts of deeper elements count as their parents'.
pub fn read(bytes: &[u8]) -> Result<Flat, IllFormed> {
    let text = std::str::from_utf8(bytes).map_err(|_| IllFormed)?;
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    if !is_text(text) {
        return Err(IllFormed);
    }
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let (mut flat, mut depth, mut ended) = (Flat::default(), 0usize, false);
    loop {
        match reader.read_event().map_err(|_| IllFormed)? {
            Event::Start(start) => {
                let name = name_of(&start)?;
                match depth {
                    0 if ended || !flat.root.is_empty() => return Err(IllFormed),
                    0 => flat.root = name,
                    1 if flat.elements.len() >= ELEMENTS_MAX => return Err(IllFormed),
                    1 => flat.elements.push((name, String::new())),
                    _ if depth >= DEPTH_MAX => return Err(IllFormed),
                    _ => {}
                }
                depth += 1;
            }
            Event::End(_) => {
                depth = depth.checked_sub(1).ok_or(IllFormed)?;
                ended |= depth == 0;
            }
            Event::Text(piece) => add(&mut flat, depth, &normal(&piece.decode().map_err(|_| IllFormed)?))?,
            Event::CData(piece) => add(&mut flat, depth, &normal(&piece.decode().map_err(|_| IllFormed)?))?,
            Event::GeneralRef(reference) => {
                let name = reference.decode().map_err(|_| IllFormed)?;
                match reference.resolve_char_ref().map_err(|_| IllFormed)? {
                    Some(c) if is_char(c) && depth > 0 => add(&mut flat, depth, c.encode_utf8(&mut [0; 4]))?,
                    Some(_) => return Err(IllFormed),
                    None if depth > 0 => add(&mut flat, depth, resolve_predefined_entity(&name).ok_or(IllFormed)?)?,
                    None => return Err(IllFormed),
                }
            }
            Event::Eof if ended && depth == 0 => return Ok(flat),
            Event::Eof | Event::DocType(_) | Event::Empty(_) => return Err(IllFormed),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
        }
    }
}

fn name_of(start: &BytesStart<'_>) -> Result<String, IllFormed> {
    for (place, attribute) in start.attributes().enumerate() {
        let attribute = attribute.map_err(|_| IllFormed)?;
        if place >= ATTRIBUTES_MAX || attribute.value.contains(&b'<') {
            return Err(IllFormed);
        }
    }
    let name = start.local_name();
    let name = std::str::from_utf8(name.as_ref()).map_err(|_| IllFormed)?;
    let first = name.chars().next().ok_or(IllFormed)?;
    if first.is_alphabetic() || first == '_' { Ok(name.to_owned()) } else { Err(IllFormed) }
}

/// XML 1.0, 2.11: a parser delivers line feeds alone.
fn normal(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n").into() } else { text.into() }
}

fn add(flat: &mut Flat, depth: usize, text: &str) -> Result<(), IllFormed> {
    match (depth, flat.elements.last_mut()) {
        (0, _) if !text.trim_ascii().is_empty() => return Err(IllFormed),
        (0 | 1, _) | (_, None) => {}
        (_, Some((_, all))) => all.push_str(text),
    }
    Ok(())
}

/// A document that is being written.
#[derive(Debug)]
pub struct Document(String);

impl Document {
    /// With a root element.
    pub fn new(root: &str) -> Document {
        Document(format!("{DECLARATION}<{root} xmlns=\"{NAMESPACE}\">"))
    }

    /// Begin an element.
    pub fn open(&mut self, name: &str) {
        self.0 += &format!("<{name}>");
    }

    /// End it.
    pub fn close(&mut self, name: &str) {
        self.0 += &format!("</{name}>");
    }

    /// An element with text.
    pub fn text(&mut self, name: &str, text: &str) {
        self.open(name);
        for c in text.chars() {
            match c {
                '&' => self.0 += "&amp;",
                '<' => self.0 += "&lt;",
                '>' => self.0 += "&gt;",
                '\r' => self.0 += "&#13;",
                other => self.0.push(other),
            }
        }
        self.close(name);
    }

    /// All of it.
    pub fn end(mut self, root: &str) -> String {
        self.close(root);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn elements(xml: &str) -> Vec<(String, String)> {
        read(xml.as_bytes()).unwrap_or_else(|_| panic!("well-formed: {xml}")).elements
    }

    fn pair(name: &str, text: &str) -> (String, String) {
        (name.to_owned(), text.to_owned())
    }

    #[test]
    fn a_publish_is_read_as_the_sdk_writes_it() {
        let xml = "<?xml version=\"1.0\" encoding=\"utf-8\"?><Message xmlns=\"http://mq.aliyuncs.com/doc/v1/\"><MessageBody>a &lt;b&gt; &amp; \
                   &quot;c&quot; 中\n\tx</MessageBody><Properties>a:1|</Properties></Message>";
        let mut flat = read(xml.as_bytes()).expect("well-formed");
        assert_eq!(flat.root, "Message");
        assert_eq!(flat.take("MessageBody").as_deref(), Some("a <b> & \"c\" 中\n\tx"));
        assert_eq!((flat.take("Properties").as_deref(), flat.take("MessageTag")), (Some("a:1|"), None));
    }

    #[test]
    fn order_blanks_prefixes_sections_and_references_do_not_matter() {
        let xml = "\u{FEFF}<m:Message xmlns:m='x'>\n <m:MessageTag/> <!-- c --> <MessageBody>1<![CDATA[<2>]]>&#51;&#x34;\r\n5\r6</MessageBody>\n</m:Message>\n";
        assert_eq!(elements(xml), [pair("MessageTag", ""), pair("MessageBody", "1<2>34\n5\n6")]);
    }

    #[test]
    fn ill_formed_documents_are_refused() {
        for wrong in [
            "",
            "text",
            "<a>",
            "<a><b></a></b>",
            "<a/><b/>",
            "<a/>text",
            "<a>&nothing;</a>",
            "<a>&#1;</a>",
            "<a>\u{1}</a>",
            "<a>\u{FFFF}</a>",
            "<a x=1/>",
            "<a x='1' x='2'/>",
            "<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>",
            "<a>& b</a>",
            "</a>",
            "<1/>",
        ] {
            assert_eq!(read(wrong.as_bytes()), Err(IllFormed), "{wrong}");
        }
        assert_eq!(read(&[b'<', b'a', b'>', 0xff, b'<', b'/', b'a', b'>']), Err(IllFormed));
        let deep = "<a>".repeat(1000) + &"</a>".repeat(1000);
        assert_eq!(read(deep.as_bytes()), Err(IllFormed));
        let wide = format!("<a>{}</a>", "<b/>".repeat(1000));
        assert_eq!(read(wide.as_bytes()), Err(IllFormed));
    }

    #[test]
    fn an_element_has_a_few_attributes() {
        let with = |count: usize| {
            let attributes: String = (0..count).map(|n| format!(" a{n}='x'")).collect();
            read(format!("<a{attributes}><b/></a>").as_bytes())
        };
        assert!(with(ATTRIBUTES_MAX).is_ok());
        assert_eq!(with(ATTRIBUTES_MAX + 1), Err(IllFormed));
        assert_eq!(with(300_000), Err(IllFormed), "some MiB of them");
    }

    #[test]
    fn what_is_written_has_one_text_node_and_no_bare_carriage_return() {
        let mut document = Document::new("Messages");
        document.open("Message");
        document.text("MessageBody", "a]]>\r\n<&\"'");
        document.close("Message");
        let xml = document.end("Messages");
        assert!(xml.ends_with("<Message><MessageBody>a]]&gt;&#13;\n&lt;&amp;\"'</MessageBody></Message></Messages>"), "{xml}");
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "[\\PC\\t\\n\\r]{0,60}") {
            prop_assume!(is_text(&text));
            let mut document = Document::new("R");
            document.text("T", &text);
            prop_assert_eq!(elements(&document.end("R")), [pair("T", &text)]);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = read(&bytes);
        }

        #[test]
        fn broken_documents_are_survived(at in 0usize..120, with in "[<>&;/!\\[\\]='\"a#x0-9 -]{1,6}") {
            let xml = "<?xml version=\"1.0\"?><Message xmlns=\"x\"><MessageBody>a &lt;b&gt;</MessageBody><Properties>a:1|</Properties></Message>";
            let mut text = xml.to_owned();
            text.insert_str(at.min(text.len()), &with);
            let _ = read(text.as_bytes());
        }
    }
}
