"""PaddleNLP's chat_template.json as a Jinja template. Runs in the server process.

The file has up to three texts: `system` begins a prompt, `conversation` is a pair of texts for each question that was
answered and its answer, and `query` is the last question. They use {{user}}, {{bot}}, {{query}}, {{system}} and
{{index}}, the number of the turn. Like all templates that come with a model, what is made here runs in the sandbox.
"""

from oarlock_runtime.models.fields import Fields

EDGE = "{{ '' }}"  # keeps Jinja from trimming spaces and newlines that border on a tag
REFUSE = "{{ raise_exception(%s) }}"


def template_source(file: Fields) -> str:
    """The template of a chat_template.json, PaddleNLP's or Hugging Face's. CheckpointError names what is wrong."""
    if file.has("chat_template"):
        return file.text("chat_template")
    query, system = file.text("query"), file.text("system", "")
    conversation = file.get("conversation")
    if conversation is None:
        conversation = []
    if not isinstance(conversation, list) or not all(isinstance(part, str) for part in conversation):
        raise file.error("conversation", "is not a list of two texts, for a question and its answer")
    if len(conversation) not in (0, 2):
        raise file.error("conversation", f"has {len(conversation)} texts, expected a question's and an answer's")
    no_turns = REFUSE % "'the template has no conversation, so only one question can be asked'"
    asked, answered = conversation or [no_turns, no_turns]
    no_system = "" if "system" in system else REFUSE % "'the template has no place for a system message'"
    return "".join(
        (
            "{% set first = messages and messages[0].role == 'system' %}",
            "{% set system = messages[0].content if first else '' %}",
            "{% if first %}" + no_system + "{% endif %}",
            EDGE + system + EDGE,
            "{% for message in (messages[1:] if first else messages) %}",
            "{% set index = loop.index0 // 2 %}",
            "{% if message.role != ('assistant' if loop.index0 % 2 else 'user') %}",
            REFUSE % "'questions and answers must alternate, and a question comes first'",
            "{% elif message.role == 'assistant' %}{% set bot = message.content %}" + EDGE + answered + EDGE,
            "{% elif loop.last %}{% set query = message.content %}" + EDGE + query + EDGE,
            "{% else %}{% set user = message.content %}" + EDGE + asked + EDGE + "{% endif %}",
            "{% endfor %}",
        )
    )
