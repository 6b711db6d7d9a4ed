"""PTX's text to a program: parameters, variables, registers, instructions, labels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.types import TYPES

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_NOTE = re.compile(r"^\s*\.(?:loc|file)\b[^\n]*$|\.pragma[^;]*;", re.M)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?\s*([^{};]*)\{", re.S)
_INSTRUCTION = re.compile(r"(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_VARIABLE = re.compile(
    r"(?m:^)\s*(?:\.(?:extern|visible|weak)\s+)*\.(shared|global|const|local)\b((?:\s+\.[a-z_]+(?:\s+\d+)?)*?)\s*\.([a-z]+\d+)\s+([\w$]+)"
    r"\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?$",
    re.S,
)


@dataclass(frozen=True)
class Instruction:
    """guard: the predicate's register, "" without one. parts: the opcode at its dots."""

    guard: str
    negated: bool
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    text: str

    @property
    def opcode(self) -> str:
        return ".".join(self.parts)

    def has(self, modifier: str) -> bool:
        return modifier in self.parts


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    count: int  # elements of an array, 0 for a number


@dataclass(frozen=True)
class Variable:
    name: str
    space: str
    align: int
    size: int  # bytes; 0 for an array whose size the launch gives
    data: bytes


@dataclass
class Program:
    name: str
    parameters: list[Parameter]
    variables: dict[str, Variable]
    registers: dict[str, str] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    threads: int = 0  # .reqntid, where the program says it


def entries(ptx: str) -> list[str]:
    """The names of a module's kernels."""
    return [m[1] for m in _ENTRY.finditer(_COMMENT.sub("", ptx))]


def parse(ptx: str, kernel: str = "") -> Program:
    """The kernel whose name contains `kernel`: the only one, or the one of exactly this name."""
    text = _NOTE.sub("", _COMMENT.sub("", ptx))
    found = [m for m in _ENTRY.finditer(text) if kernel in m[1]]
    exact = [m for m in found if m[1] == kernel]
    if len(exact or found) != 1:
        raise PtxError(f"`kernel` must name one of {entries(ptx)}, got {kernel!r}")
    entry = (exact or found)[0]
    program = Program(entry[1], _parameters(entry[2] or ""), {})
    required = re.search(r"\.reqntid\s+([\d\s,]+)", entry[3])
    if required:
        program.threads = 1
        for dimension in required[1].split(","):
            program.threads *= int(dimension)
    outside = _ENTRY.split(text)[0] if len(entries(ptx)) == 1 else text
    for statement in outside.split(";"):
        _declare_variable(program, statement)
    _Body(program).read(text, entry.end())
    return program


def _parameters(text: str) -> list[Parameter]:
    parameters = []
    for part in filter(str.strip, text.split(",")):
        match = re.search(r"\.([busf]\d+)\b.*?([\w$]+)\s*(?:\[(\d+)\])?\s*$", part, re.S)
        if not match:
            raise PtxError(f"a parameter is not understood: {part.strip()}")
        parameters.append(Parameter(match[2], match[1], int(match[3] or 0)))
    return parameters


def _declare_variable(program: Program, statement: str) -> bool:
    match = _VARIABLE.search(statement.strip())
    if not match:
        return False
    space, options, kind, name, count, initial = match.groups()
    align = re.search(r"\.align\s+(\d+)", options)
    elements = 1 if count is None else int(count or 0)
    size = elements * TYPES[kind].size
    data = b""
    if initial:
        numbers = [int(v, 0) for v in re.findall(r"-?\b0x[0-9a-fA-F]+|-?\b\d+", initial)]
        width = TYPES[kind].size
        data = b"".join((v % (1 << 8 * width)).to_bytes(width, "little") for v in numbers)
    alignment = int(align[1]) if align else TYPES[kind].size
    program.variables[name] = Variable(name, space, alignment, size, data.ljust(size, b"\0"))
    return True


class _Body:
    """Reads statements up to the entry's closing brace. An inner scope's registers are renamed."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.scopes: list[dict[str, str]] = [{}]
        self.opened = 0

    def read(self, text: str, at: int) -> None:
        statement, depth = "", 0  # depth: inside an operand's braces or brackets
        for position in range(at, len(text)):
            c = text[position]
            if c == ":" and depth == 0 and self._label(statement):
                statement = ""
            elif c == "{" and not statement.strip():
                self.scopes.append({})
                self.opened += 1
            elif c == "}" and depth == 0:
                self.scopes.pop()
                if not self.scopes:
                    return
            elif c == ";" and depth == 0:
                self._statement(statement.strip())
                statement = ""
            else:
                depth += (c in "{[") - (c in "}]")
                statement += c
        raise PtxError("the kernel's body does not end")

    def _label(self, statement: str) -> bool:
        name = statement.strip()
        if not re.fullmatch(r"[\w$]+", name):
            return False
        self.program.labels[name] = len(self.program.instructions)
        return True

    def _statement(self, text: str) -> None:
        if not text:
            return
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith("."):
            if not _declare_variable(self.program, text):
                raise PtxError(f"a directive is not understood: {text}")
        else:
            self._instruction(text)

    def _registers(self, text: str) -> None:
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
        if not match or match[1] not in TYPES:
            raise PtxError(f"registers are not understood: {text}")
        for name in match[2].split(","):
            numbered = re.fullmatch(r"\s*(%?[\w$]+)<(\d+)>\s*", name)
            names = [f"{numbered[1]}{i}" for i in range(int(numbered[2]))] if numbered else [name]
            for each in map(str.strip, names):
                inner = f"{each}'{self.opened}" if len(self.scopes) > 1 else each
                self.scopes[-1][each] = inner
                self.program.registers[inner] = match[1]

    def _named(self, operand: str) -> str:
        """The operand with the registers of inner scopes under their own names."""
        if len(self.scopes) == 1:
            return operand

        def rename(match: re.Match[str]) -> str:
            for scope in reversed(self.scopes):
                if match[0] in scope:
                    return scope[match[0]]
            return match[0]

        return re.sub(r"%?[A-Za-z_$][\w$]*", rename, operand)

    def _instruction(self, text: str) -> None:
        match = _INSTRUCTION.fullmatch(text)
        if not match:
            raise PtxError(f"an instruction is not understood: {text}")
        self.program.instructions.append(
            Instruction(
                guard=self._named(match[2] or ""),
                negated=match[1] == "!",
                parts=tuple(match[3].replace("::", "__").split(".")),
                operands=tuple(self._named(o) for o in split(match[4])),
                text=" ".join(text.split()),
            )
        )


def split(text: str) -> list[str]:
    """Operands at the commas that no bracket holds."""
    found, depth, current = [], 0, ""
    for c in text:
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += c
    return [*found, current.strip()] if current.strip() else found


def members(operand: str) -> list[str]:
    """{a, b} to its members, anything else to itself."""
    operand = operand.strip()
    return split(operand[1:-1]) if operand.startswith("{") else [operand]
